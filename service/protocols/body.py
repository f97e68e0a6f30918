"""Counts the bytes of the request bodies in a process. This module does not depend on sockets or encodings."""

from __future__ import annotations

from foldserve.service.errors import MemoryFull

# A body of at most this size, in bytes, is not counted. Small bodies need little memory. A small request must not fail
# because large bodies fill the memory.
_UNCOUNTED = 2**16


class BodyMemory:
    """Limits the bytes of all request bodies that this process holds at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # A dict from the `id` of each counted body to its size in bytes. Threads add and remove bodies at any time.
        # This object keeps a dict of sizes instead of a sum, because each operation on a dict is atomic, but adding to
        # a number is not.
        self._sizes: dict[int, int] = {}

    @property
    def held(self) -> int:
        """The total number of bytes in all counted bodies."""
        return sum(list(self._sizes.values()))

    def new_body(self) -> Body:
        """Create an empty body."""
        return Body(self)

    def check_room(self, size: int) -> None:
        """Raise `MemoryFull` if the memory now has no room for a body of `size` bytes.

        This method only checks: it reserves no memory for the body.
        """
        if size > _UNCOUNTED and self.held + size > self._limit:
            raise self._full()

    def _count(self, body: Body, size: int) -> None:
        if size > _UNCOUNTED:
            if self.held - self._sizes.get(id(body), 0) + size > self._limit:
                raise self._full()
            self._sizes[id(body)] = size

    def _free(self, body: Body) -> None:
        self._sizes.pop(id(body), None)

    def _full(self) -> MemoryFull:
        return MemoryFull("the bodies of other requests fill the memory that is set aside for them", retry_after=1)


class Body(bytearray):
    """A request body that grows while it arrives.

    The body is counted until it is freed, even if only a NumPy array still refers to it.
    """

    __slots__ = ("_memory",)

    def __init__(self, memory: BodyMemory) -> None:
        super().__init__()
        self._memory = memory

    def add(self, content: bytes | memoryview) -> None:
        """Append bytes. If the memory has no room, raises `MemoryFull` and appends nothing."""
        self._memory._count(self, len(self) + len(content))
        self += content

    def discard(self) -> None:
        """Free the bytes now, even if the traceback of an exception still refers to this body."""
        self.clear()
        self._memory._free(self)

    def __del__(self) -> None:
        self._memory._free(self)
