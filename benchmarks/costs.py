"""Measures the CPU time that each process of a running system spends on a request, and the bytes on the wire.

    python -m benchmarks.costs --requests 300 --clients 8

It starts a system with the embedded model and prints one JSON object for each budget, with CPU milliseconds by process.
docs/scaling.md uses the figures of gateway and ingress; those of encoder and decoder are for the embedded model only.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import psutil

from fsr.cli.local_stack import running
from fsr.client import AsyncClient
from fsr.client.types import Usage
from fsr_core.tiny.scenes import draw, make_scene

PARTS = {
    "fsr.gateway": "gateway",
    "fsr.decoder": "decoder",
    "ray::ServeReplica": "encoder replica",
    "ray::ProxyActor": "Serve's ingress",
}


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for base in range(46000, 60000, count):
        taken = False
        for port in range(base, base + count):
            with socket.socket() as probe:
                taken = taken or probe.connect_ex(("127.0.0.1", port)) == 0
        if not taken:
            return base
    raise RuntimeError(f"there are no {count} consecutive free ports from 46000 to 60000; close other programs")


def cpu_seconds() -> dict[str, float]:
    """CPU seconds spent so far by each part of the system, among the children of this process."""
    spent = dict.fromkeys(PARTS.values(), 0.0)
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.Error:
            continue
        for mark, part in PARTS.items():
            if mark in line:
                spent[part] += times.user + times.system
    return spent


async def ask(address: str, budget: int, requests: int, clients: int, pictures: list[bytes]) -> list[Usage]:
    """Sends requests in a closed loop and returns the usage of each answer."""
    numbers = iter(range(requests))

    async def one(client: AsyncClient) -> list[Usage]:
        return [
            (await client.ask(pictures[i % len(pictures)], "Where is the star?", budget=budget, max_tokens=8)).usage
            for i in numbers
        ]

    async with AsyncClient(address) as client:
        return [usage for usages in await asyncio.gather(*(one(client) for _ in range(clients))) for usage in usages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="requests for each budget")
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients")
    options = parser.parse_args()
    pictures = []
    for seed in range(options.requests):
        out = io.BytesIO()
        draw(make_scene(seed)).save(out, "PNG")
        pictures.append(out.getvalue())
    with tempfile.TemporaryDirectory() as logs, running("fsr-tiny", 1, free_ports(40), Path(logs)) as addresses:
        for budget in (16, 144, 16, 144):
            before, began = cpu_seconds(), time.monotonic()
            usages = asyncio.run(ask(addresses["gateway"], budget, options.requests, options.clients, pictures))
            seconds, after = time.monotonic() - began, cpu_seconds()
            row = {part: round((after[part] - before[part]) / len(usages) * 1e3, 2) for part in before}
            wire = usages[0].wire_bytes
            print(
                json.dumps(
                    {"budget": budget, "per_second": round(len(usages) / seconds, 1), "cpu_ms": row, "wire": wire}
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
