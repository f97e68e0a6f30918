"""Runs `foldserve`, and writes the audit events of its process to the file AUDIT. Each line is one event as JSON.

https://docs.python.org/3/library/audit_events.html lists the events.
"""

from __future__ import annotations

import json
import os
import sys

from foldserve.service.cli import main

AUDIT = "AUDIT"
EVENTS = ("open", "os.", "pickle.", "shutil.", "socket.connect", "socket.getaddrinfo", "subprocess.", "tempfile.")


def record(target: int, event: str, arguments: tuple[object, ...]) -> None:
    """Write the name of an event and its first argument.

    Each line is a single write, so threads can't mix their lines.
    """
    if event.startswith(EVENTS):
        first = arguments[0] if arguments else None
        os.write(
            target, json.dumps([event, os.fsdecode(first) if isinstance(first, bytes) else str(first)]).encode() + b"\n"
        )


if __name__ == "__main__":
    opened = os.open(os.environ[AUDIT], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.addaudithook(lambda event, arguments: record(opened, event, arguments))
    sys.exit(main(sys.argv[1:]))
