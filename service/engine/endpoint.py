"""One model behind one protocol. It starts an exchange for each request, and knows no socket and no framework."""

from __future__ import annotations

import asyncio

from foldserve.service.engine.exchange import Exchange, OnReply, Resources
from foldserve.service.protocols.body import BodyMemory
from foldserve.service.protocols.reply import Headers, Reply


class Endpoint:
    """Answers requests for one model in one protocol."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    @property
    def max_body(self) -> int:
        """The largest body in bytes, compressed or not."""
        return self._resources.limits.max_body

    @property
    def memory(self) -> BodyMemory:
        """Counts the bodies of all requests."""
        return self._resources.memory

    def start(self, headers: Headers, body: bytes | bytearray, on_reply: OnReply) -> Exchange:
        """Start an exchange. Must be called on the event loop.

        on_reply: called once with the reply, possibly before this method returns; never after `Exchange.cancel`.
        """
        exchange = Exchange(self._resources, headers, on_reply)
        exchange.start(body)
        return exchange

    async def answer(self, headers: Headers, body: bytes | bytearray) -> Reply:
        """Return the reply to one request. Cancelling this coroutine cancels the exchange."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def deliver(reply: Reply) -> None:
            if not future.done():  # the future may be cancelled before the task that awaits the future runs again
                future.set_result(reply)

        exchange = self.start(headers, body, deliver)
        del body  # the exchange frees the body once the body is decoded
        try:
            return await future
        finally:
            exchange.cancel()
