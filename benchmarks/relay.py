"""Measures the CPU time that a gateway spends on relaying visual tokens: one call receives them, another sends them.

    python -m benchmarks.relay

A real grpc.aio server in its own process stands for encoder and decoder. Only the CPU time of the measuring process
counts, so other load on the machine hardly matters. It prints the median of several rounds, without the first one.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import grpc

from fsr.common.transport import channel_options, server_options

SIZES = {"64 of 576, int8": 64 * 4100, "64 of 576": 64 * 8192, "192 of 576": 192 * 8192, "576 of 576": 576 * 8192}
ROUNDS, CALLS = 6, 30


async def _serve(pipe: Connection) -> None:
    async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return bytes(int(request)) if len(request) < 16 else b""

    server = grpc.aio.server(options=server_options())
    method = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("relay", {"Call": method}),))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def serve(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


async def measure(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel:
        call = channel.unary_unary("/relay/Call")
        for name, size in SIZES.items():
            seconds_per_call = []
            for _ in range(ROUNDS):
                began = time.process_time()
                for _ in range(CALLS):
                    payload = await call(str(size).encode())
                    await call(payload)
                seconds_per_call.append((time.process_time() - began) / CALLS)
            print(
                f"{name:16} {size / 1e6:5.2f} MB   {statistics.median(seconds_per_call[1:]) * 1e3:6.2f} ms CPU",
                flush=True,
            )


def main() -> None:
    parent_pipe, child_pipe = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(child_pipe,), daemon=True)
    process.start()
    try:
        asyncio.run(measure(parent_pipe.recv()))
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
