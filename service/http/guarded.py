"""Checks the scope of each request before the app gets the request. Each route of the app declares a scope.

If a route declares no scope, clients can't use the route. If a connection answers a prediction request without the app,
the connection itself checks the scope.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Match
from starlette.types import Receive, Send
from starlette.types import Scope as Connection

from foldserve.service.access.keys import Scope
from foldserve.service.compose import Service
from foldserve.service.errors import RequestError
from foldserve.service.http.routes.common import to_response
from foldserve.service.protocols.reply import Reply, failure, refusal
from foldserve.service.telemetry.record import note_error

_MAX_CACHED = 1024  # the largest number of paths whose routes are cached


def declared_scope(route: RouteContext) -> Scope | None:
    """Return the scope that a route declares; None if the route declares no scope."""
    handler = route.endpoint or getattr(route, "app", None)
    return getattr(handler, "required_scope", None)


def describe_keys(document: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document with a note at each route that needs an API key."""
    document = copy.deepcopy(document)
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for route in iter_route_contexts(app.routes):
        operations = document["paths"].get(route.path_format, {})
        if declared_scope(route) is not Scope.OPEN:
            for method in map(str.lower, route.methods or ()):
                if method in operations:
                    operations[method]["security"] = [{"bearer": []}, {"header": []}]
    return document


class GuardedApp:
    """The app of one listener. A guard checks each request before the app gets it.

    scopes: the scopes of the routes that clients of this listener can use. A client that asks for a route with any
    other scope gets a 404.
    """

    def __init__(self, app: FastAPI, service: Service, scopes: Collection[Scope] = tuple(Scope)) -> None:
        self._app = app
        self._guard = service.guard
        self._count_rejected = service.metrics.count_rejected
        self._scopes = scopes
        self._routes = [(route, declared_scope(route)) for route in iter_route_contexts(app.routes)]
        self._find_cached = lru_cache(_MAX_CACHED)(self._find)

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        """Answer one request. connection: the dict that the ASGI specification calls `scope`."""
        reply = self._refusal(connection) if connection["type"] == "http" else None
        await (self._app if reply is None else to_response(reply))(connection, receive, send)

    def _refusal(self, connection: Connection) -> Reply | None:
        exists, scope = self._find_cached(connection["method"], connection["path"])
        if exists and scope not in self._scopes:
            return failure(404, "Not Found")
        if self._guard is not None:
            try:
                self._guard.check(dict(connection["headers"]), scope)
            except RequestError as error:
                self._count_rejected(error)
                note_error(error)
                return refusal(error)
        return None

    def _find(self, method: str, path: str) -> tuple[bool, Scope | None]:
        """Find the route that the router of the app would choose.

        Finds the first route with this path and method; if no route has both, finds the first route with this path.
        Returns whether the app has such a route, and the scope of this route.
        """
        connection: Connection = {"type": "http", "method": method, "path": path, "root_path": ""}
        found: tuple[bool, Scope | None] = (False, None)
        for route, scope in self._routes:
            match, _ = route.matches(connection)
            if match is Match.FULL:
                return True, scope
            if match is Match.PARTIAL and not found[0]:
                found = (True, scope)
        return found
