"""Looks for leaks: runs a system under moderate load and checks that no process grows.

    python -m benchmarks.soak --minutes 10

It starts its own system. Several clients ask questions, and some of them stop in the middle of an answer. Every few
seconds it samples memory, threads and open files of each process. At the end it prints their medians in the first and
in the last quarter of the time, and the KV memory that was not freed. It exits with 1 if something grew, if KV memory
was not freed, or if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

from fsr.cli.local_stack import running
from fsr.client import AsyncClient, ClientError
from fsr.common.wire.transport import channel_options
from fsr.v1 import decoder_pb2, decoder_pb2_grpc
from fsr_core.tiny.scenes import draw, make_scene

EVERY_SECONDS = 5.0
ALLOWED = {
    "MiB": (1.05, 10.0),
    "threads": (1.0, 4.0),
    "files": (1.0, 8.0),
}  # allowed growth: the larger of factor and addition
QUESTION = "What colour is the star?"


@dataclass
class Watched:
    """The samples of one process, by quantity."""

    name: str
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def role(process: psutil.Process) -> str:
    """A readable name of a process. A process of Ray is named after its program."""
    words = process.cmdline()
    line = " ".join(words)
    for mark, name in (("ServeReplica", "encoder replica"), ("ProxyActor", "encoder proxy")):
        if mark in line:
            return name
    for service in ("gateway", "decoder", "encoder"):
        if f"-m fsr.{service}" in line:
            return service
    script = next((Path(word).stem for word in words if word.endswith(".py")), process.name())
    return f"Ray: {script.removeprefix('ray::')}"


def take_samples(watched: dict[int, Watched]) -> None:
    """Adds a sample of each child process."""
    for process in psutil.Process().children(recursive=True):
        try:
            with process.oneshot():
                samples = watched.setdefault(process.pid, Watched(f"{role(process)} ({process.pid})")).samples
                samples["MiB"].append(process.memory_info().rss / 2**20)
                samples["threads"].append(process.num_threads())
                samples["files"].append(process.num_fds())
        except psutil.Error:
            continue


async def load(address: str, clients: int, until: float) -> tuple[int, int, int]:
    """Runs the clients until the time `until`. Returns the numbers of answers, cancelled answers and errors."""
    pictures = []
    for seed in range(910_000, 910_032):
        out = io.BytesIO()
        draw(make_scene(seed)).save(out, "PNG")
        pictures.append(out.getvalue())
    counts = [0, 0, 0]

    async def worker(number: int) -> None:
        turn = number
        while time.monotonic() < until:
            turn += clients
            options = {"budget": 16 + turn % 64, "max_tokens": 24, "ignore_eos": True, "seed": turn}
            try:
                async with aclosing(client.stream(pictures[turn % len(pictures)], QUESTION, **options)) as chunks:
                    async for _ in chunks:
                        if turn % 10 == 0:
                            break
                counts[1 if turn % 10 == 0 else 0] += 1
            except ClientError as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                counts[2] += 1
            await asyncio.sleep(0.05)

    async with AsyncClient(address) as client:
        await asyncio.gather(*(worker(number) for number in range(clients)))
    return counts[0], counts[1], counts[2]


def unfreed_kv_bytes(address: str) -> int:
    """Bytes of KV memory that are still in use."""
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        load = stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=10).load
    return int(load.kv_bytes_capacity - load.kv_bytes_free)


def report(watched: dict[int, Watched]) -> bool:
    """Prints the table. Returns whether no process grew; processes that lived only for a short time do not count."""
    print("| process | " + " | ".join(f"{q}, first quarter | last quarter" for q in ALLOWED) + " | flat |")
    print("| --- | " + "--: | --: | " * len(ALLOWED) + "--- |")
    flat = True
    longest = max(len(one.samples["MiB"]) for one in watched.values())  # Ray starts and ends idle workers
    watched = {pid: one for pid, one in watched.items() if 2 * len(one.samples["MiB"]) > longest}
    for one in sorted(watched.values(), key=lambda w: w.name):
        cells, good = [], True
        for quantity, (factor, addition) in ALLOWED.items():
            values = one.samples[quantity]
            quarter = max(1, len(values) // 4)
            first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
            good &= last <= max(first * factor, first + addition)
            cells += [f"{first:.0f}", f"{last:.0f}"]
        flat &= good
        print(f"| {one.name} | {' | '.join(cells)} | {'yes' if good else 'NO'} |")
    return flat


async def soak(addresses: dict[str, str], clients: int, minutes: float) -> bool:
    watched: dict[int, Watched] = {}
    until = time.monotonic() + minutes * 60
    warm = min(60.0, minutes * 6)
    print(f"warming up for {warm:.0f} s, then {minutes:g} min with {clients} clients", file=sys.stderr)
    await load(addresses["gateway"], clients, time.monotonic() + warm)

    async def watch() -> None:
        while True:
            await asyncio.to_thread(take_samples, watched)
            await asyncio.sleep(EVERY_SECONDS)

    watching = asyncio.create_task(watch())
    answers, cancelled, errors = await load(addresses["gateway"], clients, until + warm)
    watching.cancel()
    await asyncio.sleep(1.0)
    decoders = [address for name, address in addresses.items() if name.startswith("decoder") and "metrics" not in name]
    unfreed = {address: unfreed_kv_bytes(address) for address in decoders}
    flat = report(watched)
    print(f"\n{answers} answers, {cancelled} cancelled, {errors} errors; KV bytes not freed: {sum(unfreed.values())}")
    return flat and not errors and not any(unfreed.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run after warming up")
    parser.add_argument("--clients", type=int, default=4, help="concurrent clients")
    parser.add_argument("--decoders", type=int, default=2, help="decoder replicas of the system")
    parser.add_argument("--port", type=int, default=20050, help="first port of the system that is started")
    options = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    with running("fsr-tiny", options.decoders, options.port, logs) as addresses:
        flat = asyncio.run(soak(addresses, options.clients, options.minutes))
    raise SystemExit(0 if flat else 1)


if __name__ == "__main__":
    main()
