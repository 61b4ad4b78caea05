"""Measures what traces cost: a gateway that sends traces against one that does not, in turn in one run.

    python -m benchmarks.tracing

It starts a system with the embedded model, and two more gateways before the same encoder and decoder, which send no
traces themselves. One gateway sends its traces to a receiver that throws them away. One client asks short questions
about pictures whose features are cached, in turn at both. It prints one JSON object: CPU milliseconds of each gateway
for a request, and the p50 of a request at the client. Needs the extra `otel`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles

import psutil
from tqdm import tqdm

from benchmarks.costs import free_ports
from benchmarks.otlp_receiver import discarding
from benchmarks.ttft import picture
from fsr.cli.local_stack import running
from fsr.client import Client, ClientError

BUDGET, MAX_TOKENS, QUESTION = 16, 8, "Where is the star?"
PICTURES, WARM_UP = 8, 1  # rounds that do not count


@contextmanager
def gateway(
    system: dict[str, str], port: int, log: Path, endpoint: str | None
) -> Iterator[tuple[Client, psutil.Process]]:
    """One more gateway of a running system, and a client of it."""
    command = [sys.executable, "-m", "fsr.gateway", "--port", str(port), "--metrics-port", str(port + 1)]
    command += ["--encoders", system["encoder"], "--decoders", system["decoder-0"]]
    command += [] if endpoint is None else ["--otlp-endpoint", endpoint]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            wait_until_ready(client, process, log)
            yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            client.ask(picture(0), QUESTION, budget=BUDGET, max_tokens=1)
            return
        except ClientError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(
                    f"error: a gateway did not start ({error}); its log: {log.read_text()[-2000:]}"
                ) from error
            time.sleep(0.2)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(
    gateways: dict[str, tuple[Client, psutil.Process]], rounds: int, requests: int
) -> dict[str, dict[str, float]]:
    """CPU milliseconds and p50 of each gateway; the median of the rounds."""
    pictures = [picture(seed) for seed in range(PICTURES)]
    cpu: dict[str, list[float]] = {name: [] for name in gateways}
    latency: dict[str, list[float]] = {name: [] for name in gateways}
    for _ in tqdm(range(WARM_UP + rounds), desc="rounds", file=sys.stderr):
        for name, (client, process) in gateways.items():
            before, times = cpu_seconds(process), []
            for number in range(requests):
                began = time.perf_counter()
                client.ask(pictures[number % PICTURES], QUESTION, budget=BUDGET, max_tokens=MAX_TOKENS)
                times.append(time.perf_counter() - began)
            cpu[name].append(1000 * (cpu_seconds(process) - before) / requests)
            latency[name].append(1000 * median(times))
    return {
        name: {
            "cpu_ms": round(median(cpu[name][WARM_UP:]), 2),
            "lowest_quarter_cpu_ms": round(quantiles(cpu[name][WARM_UP:], n=4)[0], 2),
            "p50_ms": round(median(latency[name][WARM_UP:]), 2),
        }
        for name in gateways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count; one more comes before as warm-up")
    parser.add_argument("--requests", type=int, default=100, help="requests of each gateway in each round")
    options = parser.parse_args()
    if options.rounds < 2 or options.requests < 1:
        parser.error("--rounds, --requests: give at least 2 rounds of 1 request")
    first = free_ports(50)
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        system = stack.enter_context(running("fsr-tiny", 1, first, logs, start_seconds=None))
        endpoint = stack.enter_context(discarding())
        gateways = {
            name: stack.enter_context(gateway(system, first + 40 + 2 * i, logs / f"{i}.log", chosen))
            for i, (name, chosen) in enumerate({"without traces": None, "with traces": endpoint}.items())
        }
        print(json.dumps(measure(gateways, options.rounds, options.requests), indent=2))


if __name__ == "__main__":
    main()
