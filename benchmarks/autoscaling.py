"""Measures how the encoder scales on a Ray cluster: load rises, load falls, load rises again, and a node is killed.

    python -m benchmarks.autoscaling --plot docs/img/autoscaling.png      # two to five minutes, on one machine

Several raylets on one machine stand for nodes. The encoder application is deployed with the Serve configuration of its
manifest (deploy/k8s), but with shorter delays. Requests go through a real gateway. It prints one JSON object: whether
each change of replicas came in time, how many requests failed, and the slowest request after the kill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "FSR_ENCODER_DEVICE": "cpu", "FSR_ENCODER_DTYPE": "fp32"}
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from fsr.client import AsyncClient, ClientError
from fsr_core.tiny.scenes import draw, make_scene

ROOT = Path(__file__).parents[1]
HIGH, LOW, MOST = 12, 1, 3
# One replica per node. The delays are shorter than in the manifest (10 s up, 120 s down), so that a run takes minutes.
SCALING = {
    "min_replicas": 1,
    "max_replicas": MOST,
    "target_ongoing_requests": 3,
    "upscale_delay_s": 3,
    "downscale_delay_s": 8,
    "metrics_interval_s": 1,
    "look_back_period_s": 3,
}


@dataclass
class Record:
    """What happened in a run; all times are seconds since `began`.

    done      (time of the answer, latency)
    failed    (time of the error, message)
    samples   (time, target number of replicas, running replicas)
    marks     (start of a phase, its name)
    """

    began: float = field(default_factory=time.monotonic)
    clients: int = 0
    done: list[tuple[float, float]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    @property
    def replicas(self) -> int:
        return self.samples[-1][2] if self.samples else 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pictures(count: int) -> list[bytes]:
    """PNG pictures of different scenes, so that the feature cache does not save any work."""
    encoded = []
    for seed in range(count):
        out = io.BytesIO()
        draw(make_scene(seed)).save(out, "PNG")
        encoded.append(out.getvalue())
    return encoded


def deploy(grpc_port: int) -> None:
    """Deploys the manifest's Serve configuration on the connected Ray cluster and waits until it runs."""
    manifest = next(yaml.safe_load_all((ROOT / "deploy/k8s/base/encoder.yaml").read_text()))
    serve_config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    serve_config["proxy_location"] = "HeadOnly"  # the nodes share this machine's ports
    serve_config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    serve_config["grpc_options"]["port"] = grpc_port
    serve_config["applications"][0]["args"] = {"cache_mb": 0}
    deployment = serve_config["applications"][0]["deployments"][0]
    deployment["autoscaling_config"] = SCALING
    deployment["ray_actor_options"] = {"num_cpus": 1, "num_gpus": 0}
    config = ServeDeploySchema.model_validate(serve_config)
    client = api.serve_start(
        http_options=config.http_options.model_dump(),
        proxy_location=config.proxy_location,
        grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
    )
    client.deploy_apps(config, _blocking=False)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        status = serve.status().applications["encoder"]
        if status.status == "RUNNING":
            return
        if status.status == "DEPLOY_FAILED":
            raise RuntimeError(status.message)
        time.sleep(0.5)
    raise RuntimeError(f"the encoder does not run after 300 s: {status.status} {status.message}")


@contextlib.contextmanager
def gateway(grpc_port: int) -> Iterator[str]:
    """Runs a gateway process in front of the encoder and yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "fsr.gateway", "--port", str(port), "--metrics-port", str(free_port())]
    command += ["--encoders", f"127.0.0.1:{grpc_port}", "--log-level", "warning", "--probe-timeout-seconds", "10"]
    process = subprocess.Popen(command)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


async def client(number: int, address: str, record: Record, images: list[bytes], stop: asyncio.Event) -> None:
    """Sends requests one after the other while its number is below `record.clients`."""
    async with AsyncClient(address) as caller:
        turn = number * 7
        while not stop.is_set():
            if number >= record.clients:
                await asyncio.sleep(0.1)
                continue
            began, turn = record.now, turn + 1
            try:
                response = await caller.compress(
                    images[turn % len(images)], "Is there a red star?", budget=16, timeout=60
                )
                assert len(response.images[0].index) == 16
                record.done.append((record.now, record.now - began))
            except ClientError as error:
                record.failed.append((record.now, str(error)))


def load(address: str, record: Record, stop: threading.Event) -> None:
    """Runs the clients until `stop` is set."""

    async def run() -> None:
        over, images = asyncio.Event(), pictures(64)
        callers = [asyncio.create_task(client(i, address, record, images, over)) for i in range(HIGH)]
        await asyncio.to_thread(stop.wait)
        over.set()
        await asyncio.gather(*callers)

    asyncio.run(run())


def deployment() -> dict[str, Any]:
    """Details of the encoder deployment from Serve's controller."""
    details: dict[str, Any] = _get_global_client().get_serve_details()
    return dict(details["applications"]["encoder"]["deployments"]["Encoder"])


def running_nodes() -> list[str]:
    """The node of each running replica."""
    return [replica["node_id"] for replica in deployment()["replicas"] if replica["state"] == "RUNNING"]


def watch(record: Record, stop: threading.Event) -> None:
    """Samples the target number of replicas and the number of running ones."""
    while not stop.wait(0.5):
        details = deployment()
        running = sum(replica["state"] == "RUNNING" for replica in details["replicas"])
        record.samples.append((record.now, details["target_num_replicas"], running))


def until(record: Record, replicas: int, seconds: float) -> bool:
    """Waits for a number of running replicas. Returns whether it was reached within `seconds`."""
    end = record.now + seconds
    while record.now < end:
        if record.replicas == replicas:
            return True
        time.sleep(0.2)
    return False


def run(patience: float) -> tuple[Record, dict[str, Any]]:
    """Starts cluster, encoder and gateway, runs all phases, and returns the record and its summary."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": 80 * 2**20,
        },
    )
    try:
        for _ in range(MOST + 1):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        grpc_port = free_port()
        deploy(grpc_port)
        with gateway(grpc_port) as address:
            return _phases(cluster, address, patience)
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def _phases(cluster: Cluster, address: str, patience: float) -> tuple[Record, dict[str, Any]]:
    record, stop = Record(), threading.Event()
    time.sleep(3)  # until the gateway has found the encoder
    threads = [
        threading.Thread(target=target) for target in (lambda: load(address, record, stop), lambda: watch(record, stop))
    ]
    for thread in threads:
        thread.start()
    summary: dict[str, Any] = {}

    def phase(name: str, clients: int) -> None:
        record.clients = clients
        record.marks.append((record.now, name))

    try:
        phase(f"{LOW} client", LOW)
        time.sleep(10)
        phase(f"{HIGH} clients", HIGH)
        summary["rose_to_3"] = until(record, MOST, patience)
        time.sleep(10)
        phase(f"{LOW} client", LOW)
        summary["fell_to_1"] = until(record, 1, patience)
        time.sleep(5)
        phase(f"{HIGH} clients", HIGH)
        summary["rose_again"] = until(record, MOST, patience)
        time.sleep(5)
        nodes = running_nodes()
        cluster.remove_node(next(n for n in cluster.worker_nodes if n.node_id in nodes), allow_graceful=False)
        phase("node killed", HIGH)
        summary["noticed"] = until(record, MOST - 1, patience)
        summary["replaced"] = until(record, MOST, patience)
        time.sleep(10)
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    killed = record.marks[-1][0]
    summary |= {
        "requests": len(record.done),
        "failed": len(record.failed),
        "errors": sorted({text for _, text in record.failed})[:5],
        "requests_after_kill": sum(t > killed for t, _ in record.done),
        "slowest_after_kill_seconds": round(max((s for t, s in record.done if t > killed), default=0.0), 2),
        "most_replicas": max(running for *_, running in record.samples),
    }
    return record, summary


def plot(record: Record, path: Path) -> None:
    """Plots answers per second, replicas and latency over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, 1, sharex=True, figsize=(9, 6), dpi=90)
    end = record.samples[-1][0]
    seconds = range(int(end) + 1)
    top.plot(seconds, [sum(s <= t < s + 1 for t, _ in record.done) for s in seconds], linewidth=1)
    top.plot([t for t, _ in record.failed], [0] * len(record.failed), "rx", label="failed")
    top.set_ylabel("answers/s")
    middle.step([t for t, *_ in record.samples], [w for _, w, _ in record.samples], where="post", label="target")
    middle.step([t for t, *_ in record.samples], [r for *_, r in record.samples], where="post", label="running")
    middle.set_ylabel("replicas")
    middle.legend(fontsize=7, frameon=False, loc="upper left")
    bottom.plot([t for t, _ in record.done], [s * 1e3 for _, s in record.done], ".", markersize=1.5)
    bottom.set_yscale("log")
    bottom.set_ylabel("latency, ms")
    bottom.set_xlabel("seconds")
    for axes in (top, middle, bottom):
        for at, _ in record.marks:
            axes.axvline(at, color="grey", linewidth=0.7, linestyle=":")
    for at, name in record.marks:
        top.annotate(name, (at, 1.02), xycoords=("data", "axes fraction"), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, pil_kwargs={"optimize": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--patience", type=float, default=120, help="seconds within which each change has to come")
    options = parser.parse_args()
    record, summary = run(options.patience)
    if options.plot:
        plot(record, options.plot)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
