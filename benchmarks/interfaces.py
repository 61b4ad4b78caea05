"""What HTTP adds to gRPC at the client: the same questions by both, in turn, in one run.

    python -m benchmarks.interfaces --clients 1,32 --requests 100

It starts a system with the embedded model. Each client asks one question after the other, streamed, about pictures
whose features the encoder has cached, so that the interface is a large share of the time. `grpc` is the SDK, `openai`
the official client library, `http` a bare HTTP client (aiohttp): what `openai` takes longer than `http` is the time
of that library. It prints one JSON object for each number of clients: medians over the rounds of the p50 of all
requests, in milliseconds, until the first text and until the end. The first round is a warm-up and is dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from openai import AsyncOpenAI
from tqdm import tqdm

from benchmarks.costs import free_ports
from fsr.cli.local_stack import running
from fsr.client import AsyncClient
from fsr_core.tiny.scenes import draw, make_scene

BUDGET, MAX_TOKENS, QUESTION = 16, 8, "Where is the star?"
Times = tuple[float, float]  # seconds until the first text, and until the end
Ask = Callable[[bytes], Awaitable[Times]]


def body(picture: bytes) -> dict[str, object]:
    """The chat request that both HTTP clients send."""
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return {
        "model": "fsr-tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }


async def askers(stack: AsyncExitStack, grpc_address: str, http_address: str) -> dict[str, Ask]:
    """A function for each interface; each asks about a picture and returns its times."""
    sdk = await stack.enter_async_context(AsyncClient(grpc_address))
    library = await stack.enter_async_context(AsyncOpenAI(base_url=f"http://{http_address}/v1", api_key="none"))
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

    async def grpc(picture: bytes) -> Times:
        began, first = time.perf_counter(), 0.0
        async for chunk in sdk.stream(picture, QUESTION, budget=BUDGET, max_tokens=MAX_TOKENS):
            first = first or (time.perf_counter() - began if chunk.text else 0.0)
        return first, time.perf_counter() - began

    async def openai(picture: bytes) -> Times:
        began, first = time.perf_counter(), 0.0
        stream = await library.chat.completions.create(**body(picture), extra_body={"fsr": {"budget": BUDGET}})
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - began
        return first, time.perf_counter() - began

    async def http(picture: bytes) -> Times:
        began, first = time.perf_counter(), 0.0
        content = body(picture) | {"fsr": {"budget": BUDGET}}
        async with session.post(f"http://{http_address}/v1/chat/completions", json=content) as response:
            response.raise_for_status()
            async for line in response.content:
                if not first and b'"content":"' in line and b'"content":""' not in line:
                    first = time.perf_counter() - began
        return first, time.perf_counter() - began

    return {"grpc": grpc, "http": http, "openai": openai}


async def ask_all(ask: Ask, pictures: list[bytes], clients: int, requests: int) -> list[Times]:
    """The times of so many requests by so many clients, each of which waits for its answer before it asks again."""
    numbers = iter(range(requests))

    async def client() -> list[Times]:
        return [await ask(pictures[i % len(pictures)]) for i in numbers]

    return [times for one in await asyncio.gather(*(client() for _ in range(clients))) for times in one]


async def measure(options: argparse.Namespace, grpc_address: str, http_address: str) -> None:
    pictures = []
    for seed in range(16):
        out = io.BytesIO()
        draw(make_scene(seed)).save(out, "PNG")
        pictures.append(out.getvalue())
    async with AsyncExitStack() as stack:
        asks = await askers(stack, grpc_address, http_address)
        for clients in map(int, options.clients.split(",")):
            medians: dict[str, list[Times]] = {name: [] for name in asks}
            names = list(asks)
            for round_number in tqdm(range(options.rounds + 1), desc=f"{clients} clients"):
                for name in names[round_number % 3 :] + names[: round_number % 3]:
                    times = await ask_all(asks[name], pictures, clients, options.requests)
                    if round_number:
                        first, whole = (statistics.median(one) * 1e3 for one in zip(*times, strict=True))
                        medians[name].append((first, whole))
            row = {
                name: {
                    key: round(statistics.median(values), 2)
                    for key, values in zip(("first_text_ms", "whole_ms"), zip(*rounds, strict=True), strict=True)
                }
                for name, rounds in medians.items()
            }
            added = {name: round(row[name]["whole_ms"] - row["grpc"]["whole_ms"], 2) for name in ("http", "openai")}
            print(json.dumps({"clients": clients} | row | {"added_to_grpc_ms": added}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="1,32", help="numbers of concurrent clients, comma-separated")
    parser.add_argument("--requests", type=int, default=100, help="requests of each interface in each round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds that count; one more comes before as warm-up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as logs, running("fsr-tiny", 1, free_ports(40), Path(logs)) as addresses:
        asyncio.run(measure(options, addresses["gateway"], addresses["http"]))


if __name__ == "__main__":
    main()
