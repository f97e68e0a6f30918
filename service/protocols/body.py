"""The bytes of request bodies, counted over all requests of a process. It knows no socket and no encoding."""

from __future__ import annotations

from foldserve.service.errors import MemoryFull

# A smaller body is not counted: many small requests do not fill the memory, and must not fail for large ones.
_UNCOUNTED = 2**16


class BodyMemory:
    """A limit on the bytes of all request bodies that this process holds at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # By the identity of a body. A dict, since any thread may add a body and free one at any time: each operation on
        # it is atomic, which the change of a number would not be.
        self._sizes: dict[int, int] = {}

    @property
    def held(self) -> int:
        """The bytes of all bodies that are counted."""
        return sum(list(self._sizes.values()))

    def new_body(self) -> Body:
        """Create an empty body."""
        return Body(self)

    def check_room(self, size: int) -> None:
        """Raise `MemoryFull` if there is no room now for a body of so many bytes. This does not reserve the room."""
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
    """A body that grows. It counts until it is freed, even if only an array of NumPy still refers to it."""

    __slots__ = ("_memory",)

    def __init__(self, memory: BodyMemory) -> None:
        super().__init__()
        self._memory = memory

    def add(self, content: bytes) -> None:
        """Append bytes. Raises `MemoryFull`, and appends nothing then."""
        self._memory._count(self, len(self) + len(content))
        self += content

    def discard(self) -> None:
        """Free the bytes now, although an exception's traceback may still refer to this object."""
        self.clear()
        self._memory._free(self)

    def __del__(self) -> None:
        self._memory._free(self)
