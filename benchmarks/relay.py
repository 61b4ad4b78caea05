"""Measures the CPU time that a gateway spends on a request, and on the visual tokens that it relays with it.

    python -m benchmarks.relay --json relay.json

The gateway is a real one in its own process. One more process stands for encoder and decoder: it sends features of
any size, and streams answers of eight tokens. One client asks; sizes take turns, so that other load on the machine
affects all alike. It prints CPU milliseconds a request of the gateway's process alone, with the kernel's work for it:
the lower quartile of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles

import grpc
from grpc_health.v1 import health_pb2
from tqdm import tqdm

from benchmarks.replica import free_port
from fsr.common.wire.transport import channel_options, server_options
from fsr.v1 import decoder_pb2, encoder_pb2, gateway_pb2, gateway_pb2_grpc, types_pb2

TOKENS, WIDTH, PICTURE = 8, 4096, os.urandom(20_000)
SIZES = {"small features": (16, 128), "64 of 576": (64, WIDTH), "192 of 576": (192, WIDTH), "576 of 576": (576, WIDTH)}
ROUNDS, CALLS = 12, 25
_MODEL = types_pb2.ModelDescription(model="m", fingerprint="same", feature_dim=WIDTH, context_length=4096)


def encoded(kept: int, width: int) -> bytes:
    """An encoder's answer with so many tokens in fp16."""
    features = types_pb2.Tensor(dtype=types_pb2.DTYPE_FP16, shape=[kept, width], data=os.urandom(2 * kept * width))
    image = types_pb2.CompressedImage(features=features, index=range(kept), source_tokens=576, focus_count=kept // 2)
    return encoder_pb2.EncodeResponse(fingerprint="same", images=[image]).SerializeToString()


def answer() -> list[bytes]:
    """A decoder's messages."""
    tokens = [decoder_pb2.DecodeResponse(text=f" {i}", token_ids=[i]) for i in range(TOKENS)]
    stats = decoder_pb2.DecodeStats(prompt_tokens=600, completion_tokens=TOKENS)
    end = decoder_pb2.DecodeResponse(finish_reason=decoder_pb2.FINISH_REASON_STOP, stats=stats)
    return [message.SerializeToString() for message in (*tokens, end)]


async def _serve(pipe: Connection) -> None:
    by_kept, messages = {kept: encoded(kept, width) for kept, width in SIZES.values()}, answer()
    described = encoder_pb2.DescribeEncoderResponse(model=_MODEL, methods=["fsr"]).SerializeToString()
    decoder = decoder_pb2.DescribeDecoderResponse(model=_MODEL).SerializeToString()
    healthy = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()

    def returns(data: bytes) -> grpc.RpcMethodHandler:
        async def handle(request: bytes, context: object) -> bytes:
            return data

        return grpc.unary_unary_rpc_method_handler(handle)

    async def encode(request: bytes, context: object) -> bytes:
        return by_kept[encoder_pb2.EncodeRequest.FromString(request).budget.tokens]

    async def decode(request: bytes, context: object) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    services = {
        "fsr.v1.EncoderService": {
            "DescribeEncoder": returns(described),
            "Encode": grpc.unary_unary_rpc_method_handler(encode),
        },
        "fsr.v1.DecoderService": {
            "DescribeDecoder": returns(decoder),
            "Decode": grpc.unary_stream_rpc_method_handler(decode),
        },
        "grpc.health.v1.Health": {"Check": returns(healthy)},
    }
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]
    )
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def serve(pipe: Connection) -> None:
    asyncio.run(_serve(pipe))


@contextmanager
def gateway() -> Iterator[tuple[str, int]]:
    """Address and process id of a gateway before the stand-in."""
    parent_pipe, child_pipe = multiprocessing.Pipe()
    replica = multiprocessing.get_context("spawn").Process(target=serve, args=(child_pipe,), daemon=True)
    replica.start()
    child_pipe.close()  # so that a stand-in that ends is noticed
    port, replicas = free_port(), f"127.0.0.1:{parent_pipe.recv()}"
    options = ["--port", str(port), "--metrics-port", "0", "--encoders", replicas, "--decoders", replicas]
    process = subprocess.Popen(
        [sys.executable, "-m", "fsr.gateway", *options], stderr=subprocess.DEVNULL, env=os.environ
    )
    try:
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(60)
        replica.terminate()


def cpu_milliseconds(pid: int) -> float:
    """What the threads of a process have spent so far, by the kernel's own clock."""
    spent = [(task / "schedstat").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(map(int, spent)) / 1e6


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds by rpc and size."""
    images, instruction = [types_pb2.Image(data=PICTURE)], "What is it?"
    parts = [types_pb2.Part(image=0), types_pb2.Part(text=instruction)]
    messages = [types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)]
    with gateway() as (address, pid), grpc.insecure_channel(address, options=channel_options()) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        def compress(kept: int) -> None:
            budget = types_pb2.Budget(tokens=kept)
            stub.Compress(gateway_pb2.CompressRequest(images=images, instruction=instruction, budget=budget))

        def generate(kept: int) -> None:
            budget = types_pb2.Budget(tokens=kept)
            for _ in stub.Generate(gateway_pb2.GenerateRequest(images=images, messages=messages, budget=budget)):
                pass

        ready(lambda: compress(16))
        calls: dict[str, Callable[[int], None]] = {"Generate": generate, "Compress": compress}
        spent: dict[str, dict[str, list[float]]] = {rpc: {size: [] for size in SIZES} for rpc in calls}
        for number in tqdm(range(rounds + 1), desc="rounds"):  # the first one is a warm-up
            for rpc, call in calls.items():
                for size, (kept, _) in SIZES.items():
                    before = cpu_milliseconds(pid)
                    for _ in range(CALLS):
                        call(kept)
                    if number:
                        spent[rpc][size].append((cpu_milliseconds(pid) - before) / CALLS)
    return {rpc: {size: quantiles(times, n=4)[0] for size, times in of.items()} for rpc, of in spent.items()}


def ready(call: Callable[[], None], seconds: float = 60.0) -> None:
    """Waits until the gateway can answer."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of {CALLS} calls of each kind and size")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    figures = measure(options.rounds)
    print(
        "| CPU ms a request | " + " | ".join(f"{size}, {2e-6 * k * w:.2f} MB" for size, (k, w) in SIZES.items()) + " |"
    )
    print("| --- " + "| --: " * len(SIZES) + "|")
    for rpc, of in figures.items():
        print(f"| {rpc} | " + " | ".join(f"{value:.2f}" for value in of.values()) + " |")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
