"""Functions that every process of a server uses to stop: signal handlers, and the refusal of new connections.

This module uses signals and sockets. This module does not depend on workers or requests.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import logging
import signal
import socket
import struct
import sys
import termios
from array import array
from contextlib import suppress
from typing import NoReturn

log = logging.getLogger("foldserve")

# A supervisor sends this signal to its workers. After this signal, a worker is not ready, but still answers requests.
UNREADY_SIGNAL = signal.SIGUSR1
# A process that has begun to refuse new handshakes waits for this number of seconds, so that the handshakes that had
# already begun can finish.
HANDSHAKE_SECONDS = 0.1
_SO_ATTACH_FILTER = 26  # from <asm-generic/socket.h>; Python's module `socket` does not define this constant


def exit_on_signals(*, quietly: bool = False) -> None:
    """Raise `SystemExit(0)` on SIGTERM and SIGINT, and treat SIGHUP as SIGTERM.

    Process 1 of a container has no default signal handlers, so it would ignore these signals. When uvicorn gets a
    signal, it first drains, and then raises the signal again for the handler that was installed before uvicorn's own
    handler.
    """

    def handle(_: int, __: object) -> NoReturn:
        if not quietly:
            log.info("stopped")
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN if quietly else _hang_up)


def _hang_up(_: int, __: object) -> None:
    log.warning("SIGHUP: nothing is reloaded; stopping as for SIGTERM")
    signal.raise_signal(signal.SIGTERM)


def refuse_handshakes(listener: socket.socket) -> None:
    """Make the kernel ignore each new connection from now on.

    This function attaches a packet filter to the listener. The filter works for all processes that share the listener.
    Without a filter, the kernel may complete a handshake after the last `accept`. The client may then send a request,
    but the kernel resets the connection when the listener closes. With the filter, the client gets no answer and
    tries again after a second, when the port is closed or the next server listens on it. On systems other than Linux,
    this function does nothing.
    """
    if sys.platform != "linux":
        return
    # This classic BPF program filters packets by the TCP header. Byte 13 of the TCP header contains the flags. The
    # program drops each packet without the flag ACK. Only the first packet of a handshake has no ACK, so handshakes
    # that have begun can finish.
    instructions = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x10), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    filter_program = struct.pack("HL", len(instructions), ctypes.addressof(program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


def has_bytes(transport: asyncio.Transport) -> bool:
    """Return whether the kernel has received bytes that the process has not read."""
    count = array("i", [0])
    try:
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    except OSError:  # the connection is already closed
        return False
    return count[0] > 0
