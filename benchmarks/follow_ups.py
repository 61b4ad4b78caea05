"""Measures follow-up questions to three encoder replicas behind one proxy, with and without the shared cache.

    python -m benchmarks.follow_ups

It starts one Ray with two Serve applications of the embedded model, which differ in `shared_cache` alone, and asks them
in turn: a first question about each of some new pictures, and after a moment a second one. Serve sends each question to
any replica. It prints one JSON object: how many second questions found their picture's features, the p50 of both
questions at the caller, and the CPU time of the replicas for a new picture.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil
from tqdm import tqdm

from benchmarks.costs import free_ports
from benchmarks.ttft import picture
from fsr.common.wire.transport import channel_options
from fsr.encoder.serving.ray_environment import ray_environment
from fsr.encoder.settings import EncoderSettings
from fsr.v1 import encoder_pb2, encoder_pb2_grpc, types_pb2

REPLICAS, BUDGET = 3, 16
PAUSE_SECONDS = 1.5  # before the second questions; a replica tells the others several times a second what it has
QUESTIONS = ("Where is the star?", "How many red shapes are there?")
APPLICATIONS = {"own cache": False, "shared cache": True}


@contextmanager
def encoders() -> Iterator[str]:
    """Both applications behind one proxy; yields its address. Ray and its processes end with it."""
    port = free_ports(2)
    settings = EncoderSettings(
        ingress="proxy", port=port, min_replicas=REPLICAS, max_replicas=REPLICAS, num_cpus=0, log_level="warning"
    )
    os.environ.update(ray_environment(settings, os.environ))
    import ray
    from ray import serve
    from ray.serve.config import gRPCOptions

    from fsr.encoder.app import build
    from fsr.encoder.grpc_service import SERVICER_FUNCTION
    from fsr.encoder.serving.ray_start import start_ray

    start_ray(address="local", log_to_driver=False)
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": port + 1},
            grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[SERVICER_FUNCTION]),
        )
        for name, shared in APPLICATIONS.items():
            application = build(settings.model_copy(update={"shared_cache": shared}))
            serve.run(application, name=_application(name), route_prefix=f"/{_application(name)}")
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def _application(name: str) -> str:
    return name.replace(" ", "-")


def replica_seconds() -> dict[str, float]:
    """CPU seconds so far of the replicas of each application."""
    spent = dict.fromkeys(APPLICATIONS, 0.0)
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        for name in APPLICATIONS:
            if f"ray::ServeReplica:{_application(name)}:" in line:
                times = process.cpu_times()
                spent[name] += times.user + times.system
    return spent


class Caller:
    """Asks one of the applications."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self._encode = encoder_pb2_grpc.EncoderServiceStub(channel).Encode
        self._metadata = (("application", _application(name)),)

    def ask(self, image: bytes, question: str) -> tuple[float, bool]:
        """Milliseconds of a question, and whether its picture's features were cached."""
        request = encoder_pb2.EncodeRequest(
            images=[types_pb2.Image(data=image)], instruction=question, budget=types_pb2.Budget(tokens=BUDGET)
        )
        began = time.perf_counter()
        response = self._encode(request, metadata=self._metadata, timeout=120)
        return 1000 * (time.perf_counter() - began), response.cache_hits == 1


def measure(address: str, pictures: Sequence[bytes], rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of each application; the first round is a warm-up, and does not count."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in APPLICATIONS}
    hits, cpu = {name: [] for name in APPLICATIONS}, dict.fromkeys(APPLICATIONS, 0.0)  # type: dict[str, list[bool]], Any
    size = len(pictures) // (rounds + 1)
    with grpc.insecure_channel(address, options=channel_options()) as channel:
        callers = {name: Caller(channel, name) for name in APPLICATIONS}
        for number in tqdm(range(rounds + 1), desc="rounds", file=sys.stderr):
            some, counts = pictures[number * size : (number + 1) * size], number > 0
            before = replica_seconds()
            for image in some:
                for name, caller in callers.items():
                    milliseconds, _ = caller.ask(image, QUESTIONS[0])
                    times[name][0].extend([milliseconds] * counts)
            time.sleep(PAUSE_SECONDS)
            for name, after in replica_seconds().items():
                cpu[name] += (after - before[name]) * counts
            for image in some:
                for name, caller in callers.items():
                    milliseconds, hit = caller.ask(image, QUESTIONS[1])
                    times[name][1].extend([milliseconds] * counts)
                    hits[name].extend([hit] * counts)
    return {
        name: {
            "questions": len(hits[name]),
            "found": round(sum(hits[name]) / len(hits[name]), 3),
            "first_ms": round(median(times[name][0]), 1),
            "second_ms": round(median(times[name][1]), 1),
            "cpu_ms_of_a_new_picture": round(1000 * cpu[name] / len(hits[name]), 1),
        }
        for name in APPLICATIONS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20, help="new pictures in each round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count; one more comes before as warm-up")
    parser.add_argument("--json", type=Path, help="file for the figures; Ray may print between those on the screen")
    options = parser.parse_args()
    pictures = [picture(seed) for seed in range(options.pictures * (options.rounds + 1))]
    with encoders() as address:
        text = json.dumps({"replicas": REPLICAS} | measure(address, pictures, options.rounds), indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
