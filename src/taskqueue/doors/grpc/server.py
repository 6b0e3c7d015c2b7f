"""A grpc.aio server that no call can end by its name.

grpc.aio 1.85 decodes the name of every call as UTF-8 in the one task that takes calls, outside of
any `try`: a single call whose path is not text would end the server for good (seen with 1.85.1).
Here calls are taken by registered names only, each kind by a task of its own, and the name of any
other call is never looked at. This leans on parts of grpcio that are not public, which is why its
version is pinned; `tests/hardening/test_http2.py` says whether it still holds.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc as _cygrpc
from grpc.aio import _server as aio_server

cygrpc: Any = _cygrpc


class NamedCalls(cygrpc.AioServer):  # type: ignore[misc]
    """The core of a server, with the loop that takes calls written anew."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *arguments: Any) -> None:
        super().__init__(loop, *arguments)
        self._event_loop = loop
        self._most_calls: int | None = arguments[-1]
        self._methods: dict[bytes, Any] = {}
        self._resolver: Any = None
        self._calls: set[asyncio.Task[None]] = set()

    def add_registered_method_handlers(self, handlers: Mapping[bytes, Any]) -> None:
        """Take calls of these names."""
        super().add_registered_method_handlers(handlers)
        self._methods.update(handlers)

    def _make_request_call_future(self, method: bytes | None) -> "asyncio.Task[None]":
        if self._resolver is None:
            self._resolver = cygrpc._MethodResolver([], self._methods)
        return self._event_loop.create_task(self._take_calls(method))

    async def _take_calls(self, method: bytes | None) -> None:
        """Take calls of one name, or all that have none of the names, for ever."""
        name = method.decode() if method else "unknown"
        while True:
            if method:
                state = await self._request_registered_call(method)
            else:
                state = await self._request_call()
            is_full = self._most_calls is not None and len(self._calls) >= self._most_calls
            work = cygrpc._handle_rpc(name, self._resolver, (), state, self._event_loop, is_full)
            call: asyncio.Task[None] = self._event_loop.create_task(
                cygrpc._schedule_rpc_coro(work, state, self._event_loop, name)
            )
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)


def new_server(options: list[tuple[str, Any]], most_calls: int) -> grpc.aio.Server:
    """A server with these options of the core, and so many calls at most."""
    server: Any = grpc.aio.server(options=options, maximum_concurrent_rpcs=most_calls)
    arguments = aio_server._augment_channel_arguments(options, None)
    server._server = NamedCalls(server._loop, None, [], None, arguments, most_calls)
    return server  # type: ignore[no-any-return]
