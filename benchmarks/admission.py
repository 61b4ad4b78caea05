"""Measures concurrent requests and goodput of one decoder replica with few and with all visual tokens.

The KV memory is the same for both. The load is a closed loop: each client sends its next request when it has the answer
to the last one. A refused client tries again after the time that the replica hints, and its clock runs on. Both prompt
lengths take turns in one run against one replica. The figures are medians over the rounds, and the first seconds of
each round do not count. Goodput is the number of answers per second within a latency bound. The bounds are ten and
twenty times the median latency of a lone client with all tokens.

    python -m benchmarks.admission
    python -m benchmarks.admission --clients 8,32 --kv-memory 20MiB --out admission
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import grpc

from benchmarks.replica import decoder, request
from fsr.common.wire.transport import channel_options
from fsr.v1 import decoder_pb2, decoder_pb2_grpc

BOUNDS = (10, 20)  # times the latency of a lone client with all tokens


@dataclass
class Round:
    """The samples of one round: one prompt length, one number of clients."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    refused: int = 0

    def figures(self, bounds: list[float]) -> dict[str, float]:
        percentiles = quantiles(self.latencies, n=20) if len(self.latencies) > 1 else self.latencies * 19
        figures = {"running": median(self.running), "answers_per_second": len(self.latencies) / self.seconds}
        for bound in bounds:
            figures[goodput(bound)] = sum(latency <= bound for latency in self.latencies) / self.seconds
        figures |= {"latency_p50": median(self.latencies), "latency_p95": percentiles[18]}
        return figures | {"ttft_p50": median(self.first), "refused": self.refused}


def goodput(bound: float) -> str:
    """Name of the figure for a latency bound in seconds."""
    return f"goodput_per_second_within_{bound:.2f}_s"


async def client(stub: Any, decode_request: Any, samples: Round, start: float, end: float) -> None:
    while perf_counter() < end:
        began, first = perf_counter(), 0.0
        while True:
            try:
                async for _ in stub.Decode(decode_request, timeout=120):
                    first = first or perf_counter()
                break
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                samples.refused += 1
                hint = dict(error.trailing_metadata() or ()).get("retry-after-ms", "100")
                await asyncio.sleep(int(hint) / 1000)
        if start <= (done := perf_counter()) <= end:
            samples.latencies.append(done - began)
            samples.first.append(first - began)


async def one_round(stub: Any, decode_request: Any, clients: int, warm: float, seconds: float) -> Round:
    samples = Round(seconds)
    start = perf_counter() + warm
    work = [asyncio.create_task(client(stub, decode_request, samples, start, start + seconds)) for _ in range(clients)]
    while perf_counter() < start + seconds:
        await asyncio.sleep(0.1)
        description = await stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest())
        if perf_counter() >= start:
            samples.running.append(description.load.running)
    await asyncio.gather(*work)
    return samples


async def measure(address: str, options: argparse.Namespace) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        description = await stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest())
        requests = {visual: request(description, visual, options.answer) for visual in options.visual}
        alone = await one_round(stub, requests[max(requests)], 1, options.warm, options.seconds)
        bounds = options.bounds or [times * median(alone.latencies) for times in BOUNDS]
        rows = []
        for clients in options.clients:
            rounds: dict[int, list[dict[str, float]]] = {visual: [] for visual in requests}
            for _ in range(options.rounds):
                for visual, decode_request in requests.items():
                    samples = await one_round(stub, decode_request, clients, options.warm, options.seconds)
                    rounds[visual].append(samples.figures(bounds))
            for visual, figures in rounds.items():
                rows.append(
                    {"clients": clients, "visual_tokens": visual}
                    | {name: median(one[name] for one in figures) for name in figures[0]}
                )
                print(json.dumps(rows[-1]), flush=True)
    return {
        "kv_bytes": description.load.kv_bytes_capacity,
        "kv_bytes_per_token": description.cost.kv_bytes_per_token,
        "answer_tokens": options.answer,
        "bounds_seconds": bounds,
        "cores": os.cpu_count(),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    bounds = result["bounds_seconds"]
    heads = ["clients", "visual tokens", "running at a time", "answers/s"]
    heads += [f"goodput/s within {bound:.2f} s" for bound in bounds] + ["latency p50 s", "p95 s", "TTFT p50 s"]
    lines = [
        f"KV memory {result['kv_bytes'] / 2**20:.1f} MiB, {result['answer_tokens']} answer tokens,"
        f" {result['cores']} cores",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --: |" * len(heads),
    ]
    for row in result["rows"]:
        cells = [str(row["clients"]), str(row["visual_tokens"]), f"{row['running']:.0f}"]
        rates = ["answers_per_second", *(goodput(bound) for bound in bounds)]
        cells += [f"{row[name]:.1f}" for name in rates]
        cells += [f"{row['latency_p50']:.2f}", f"{row['latency_p95']:.2f}", f"{row['ttft_p50']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fsr-tiny")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--kv-memory", default="10MiB", help="KV memory of the replica")
    parser.add_argument(
        "--visual", type=numbers, default=[144, 16], help="visual tokens of the prompts that are compared"
    )
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of each round that count")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before them that do not count")
    parser.add_argument(
        "--bounds", type=lambda text: [float(part) for part in text.split(",")], help="latency bounds in seconds"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    replica = ["--model", options.model, "--engine", options.engine, "--device", options.device]
    replica += ["--dtype", options.dtype, "--kv-memory", options.kv_memory, "--max-waiting", str(max(options.clients))]
    with decoder(replica) as address:
        result = asyncio.run(measure(address, options))
    print(table(result))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        options.out.with_suffix(".md").write_text(table(result) + "\n")


if __name__ == "__main__":
    main()
