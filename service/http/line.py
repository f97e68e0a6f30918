"""The message line between a supervisor and one of its workers. Both sides send numbered messages.

    supervisor -> worker    prepare, commit     a change of the models
                            executed            the outcome of a command
                            question            a question of a worker for all workers
                            answers             the answers of all workers to a question
    worker -> supervisor    prepared, committed the replies, with the number of the message
                            execute             a command that the worker got from an operator
                            ask                 a question for all workers
                            answer              the answer to a question, with the number of the message
                            ready, refused      the start of the worker: its announcement, or the reason

The messages are JSON, because unpickling a message could run code.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from multiprocessing.connection import Connection


class Line:
    """One process's end of the message line. Any thread may call `send`. Only one thread may call `receive`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, text: str, number: int = 0) -> None:
        """Send a message.

        If the other process is dead, this method does nothing: the thread that calls `receive` notices the death.
        """
        with self._lock, suppress(OSError):
            self.connection.send_bytes(json.dumps([kind, text, number]).encode())

    def receive(self) -> tuple[str, str, int]:
        """Wait for a message. Returns the kind, the text and the number of the message.

        Raises `EOFError` or `OSError` if the other process is dead.
        """
        kind, text, number = json.loads(self.connection.recv_bytes())
        return kind, text, number

    def close(self) -> None:
        """Close this end of the line."""
        self.connection.close()
