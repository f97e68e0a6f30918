"""Serves the page at / and its files. The files are read, hashed and compressed once, when the app is created.

The path of each file contains the digest of all files, so that browsers can cache each file for ever. After an upgrade,
the browser gets the new files, because the new files have other paths. This module does not depend on models.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.exceptions import HTTPException

from foldserve.service.access.keys import Scope
from foldserve.service.http.routes.common import requires
from foldserve.service.http.security import STRICT_PAGE_HEADERS

FOLDER = Path(__file__).parent.parent / "web" / "page"

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_INDEX = "index.html"
# The server replaces this placeholder in the page with the path of the folder that contains the page's files.
_PLACE = b"{{files}}"


class _File:
    """A file of the page, kept in memory both as plain bytes and compressed."""

    def __init__(self, name: str, content: bytes, *, forever: bool) -> None:
        self._headers = {
            **STRICT_PAGE_HEADERS,
            "Content-Type": f"{_TYPES[Path(name).suffix]}; charset=utf-8",
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "Cache-Control": "public, max-age=31536000, immutable" if forever else "no-cache",
            "Vary": "Accept-Encoding, Accept" if name == _INDEX else "Accept-Encoding",
        }
        self._plain = content
        self._compressed = gzip.compress(content, 9, mtime=0)

    def answer(self, request: Request) -> Response:
        """Return the file, or a 304 if the browser already has the file."""
        if self._headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self._headers)
        encodings = request.headers.get("accept-encoding", "").replace(" ", "").split(",")
        if "gzip" in encodings:
            return Response(self._compressed, headers={**self._headers, "Content-Encoding": "gzip"})
        return Response(self._plain, headers=self._headers)


def add_page(app: FastAPI, *, enabled: bool) -> None:
    """Add the routes of the page.

    enabled: if `enabled` is False, the path / redirects a browser to /docs, and requests for the files get a 404.
    """
    contents = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    digest = hashlib.sha256(b"\0".join(contents.values())).hexdigest()[:16]
    index = _File(_INDEX, contents.pop(_INDEX).replace(_PLACE, f"page/{digest}".encode()), forever=False)
    files = {name: _File(name, content, forever=True) for name, content in contents.items()} if enabled else {}

    @app.get("/", include_in_schema=False)
    @requires(Scope.OPEN)
    async def root(request: Request) -> Response:
        # A browser gets the page. A KServe client gets JSON, because it sends a GET to / to check that the server is
        # alive.
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"status": "alive", "docs": "/docs"})
        return index.answer(request) if enabled else RedirectResponse("docs")

    @app.get("/page/{folder}/{name}", include_in_schema=False)
    @requires(Scope.OPEN)
    async def file(request: Request, folder: str, name: str) -> Response:
        if folder != digest or name not in files:
            raise HTTPException(404)
        return files[name].answer(request)
