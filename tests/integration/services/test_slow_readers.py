"""Callers that stop reading, against servers alone: buffers take more than an answer of the embedded model has.

grpc.aio keeps the first call of a server for ever, and the last one until the next comes (the variables of its loop).
So the servers here get an ordinary call before and after.
"""

import asyncio
import time

import grpc
import pytest

from fsr.common.wire.slow_readers import SlowReaders

SECONDS = 0.5
PIECE = bytes(2**20)  # more than a window
_SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]


class Server:
    """A gRPC server with a method of each kind, which says how its calls ended."""

    def __init__(self):
        self.ended, self.cut = [], []
        readers = SlowReaders("a.B", SECONDS, lambda: self.cut.append(1))
        self._server = grpc.aio.server(interceptors=[readers])
        methods = {
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Yielding": grpc.unary_unary_rpc_method_handler(self.yielding),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", methods),))
        address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.channel = grpc.aio.insecure_channel(address, options=_SMALL_WINDOW)

    async def __aenter__(self):
        await self._server.start()
        await self.call("Unary", b"1")
        return self

    async def __aexit__(self, *exception):
        await self.channel.close()
        await self._server.stop(None)

    async def call(self, method, count):
        call = self.channel.unary_unary if method != "Stream" else self.channel.unary_stream
        answer = call(f"/a.B/{method}")(count)
        return [message async for message in answer] if method == "Stream" else [await answer]

    async def stream(self, request, context):
        try:
            for _ in range(int(request)):
                yield PIECE
        finally:
            self.ended.append("Stream")

    async def unary(self, request, context):
        return PIECE * int(request)

    async def yielding(self, request, context):
        try:
            yield PIECE * int(request)
        finally:
            self.ended.append("Yielding")


@pytest.mark.parametrize("method", ["Stream", "Unary", "Yielding"])
async def test_caller_that_takes_nothing_is_cut_and_one_that_reads_is_not(method):
    async with Server() as server:
        assert b"".join(await server.call(method, b"3")) == PIECE * 3
        while method != "Unary" and not server.ended:  # a method goes on for a moment after its message is taken
            await asyncio.sleep(0.01)
        server.ended.clear()
        # As streams, so that nobody reads: a unary call reads by itself.
        calls = [server.channel.unary_stream(f"/a.B/{method}")(b"3") for _ in range(8)]
        began = time.monotonic()
        async with asyncio.timeout(60):
            while len(server.cut) < len(calls):
                await asyncio.sleep(0.05)
            took = time.monotonic() - began
            assert b"".join(await server.call(method, b"1")) == PIECE
            codes = [await code_of(call) for call in calls]
            ended = [] if method == "Unary" else [method] * (len(calls) + 1)
            while len(server.ended) < len(ended):
                await asyncio.sleep(0.01)
        assert codes == [grpc.StatusCode.CANCELLED] * len(calls)
        assert took >= SECONDS and server.ended == ended


async def code_of(call):
    """What the caller gets when it reads on after all."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return caught.value.code()


async def test_caller_that_reads_slowly_is_not_cut():
    async with Server() as server:
        call, received = server.channel.unary_stream("/a.B/Stream")(b"6"), 0
        async for message in call:
            received += len(message)
            await asyncio.sleep(0.6 * SECONDS)
        assert received == 6 * len(PIECE) and not server.cut
