"""Serves a constant response with nginx: `python serve_nginx.py PORT BYTES...`. The program nginx must be on the PATH.

nginx reads the same bodies as foldserve, and its responses have as many bytes as foldserve's responses. BYTES gives the
length of each response: POST /0 returns a response of the first length, and POST /1 a response of the second length.
The Python process replaces itself by nginx.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

CONFIG = """
daemon off;
master_process off;
error_log stderr error;
pid {folder}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    keepalive_requests 1000000000;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port};
{locations}
    }}
}}
"""

_PIECE = 1024


def main() -> None:
    """Write a configuration to a temporary folder, and start nginx with it."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    folder = Path(tempfile.mkdtemp(prefix="nginx-"))
    # A parameter of nginx has at most 4 KiB, so a long response consists of several variables.
    locations = [f"        location = /{i} {{ {_response(int(size))} }}" for i, size in enumerate(sys.argv[2:])]
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=sys.argv[1], locations="\n".join(locations)))
    os.execv(program, [program, "-p", str(folder), "-c", str(config)])  # noqa: S606


def _response(size: int) -> str:
    count, rest = divmod(size, _PIECE)
    return "set $piece " + "0" * _PIECE + '; return 200 "' + "${piece}" * count + "0" * rest + '";'


if __name__ == "__main__":
    main()
