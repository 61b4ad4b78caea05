"""Runs a Prometheus on this machine for services started by hand or by `fsr up`, with the rules of this folder.

python -m deploy.prometheus.local --gateway 127.0.0.1:20055 --decoder 127.0.0.1:20071 --encoder 127.0.0.1:20056

It needs the commands `prometheus` and `promtool` (Debian's package `prometheus`; `make tools`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Prometheus", "Series", "configuration", "prometheus", "rules"]

HERE = Path(__file__).parent
# The server is on this machine, whatever proxy the environment names.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
_DISCOVERY = ("dns_sd_configs", "static_configs", "kubernetes_sd_configs")


@dataclass(frozen=True)
class Series:
    """One series of a query's result: its labels, and its points as (seconds since 1970, value)."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """The query API of a running server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def get(self, path: str, **parameters: Any) -> Any:
        """The `data` of the response. Raises ValueError with the server's message if it refuses the query."""
        try:
            with _open(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {json.load(error)['error']}") from error

    def instant(self, query: str) -> list[Series]:
        """The series now, each with one point."""
        result = self.get("query", query=query)["result"]
        return [Series(one["metric"], [(one["value"][0], float(one["value"][1]))]) for one in result]

    def range(self, query: str, start: float, end: float, step: float) -> list[Series]:
        """The series from `start` to `end`, with one point every `step` seconds."""
        result = self.get("query_range", query=query, start=start, end=end, step=step)["result"]
        return [Series(one["metric"], [(t, float(v)) for t, v in one["values"]]) for one in result]


def rules() -> list[dict[str, Any]]:
    """Every recording rule and alert of this folder."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((HERE / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def configuration(targets: Mapping[str, Sequence[str]], interval: str) -> str:
    """`prometheus.yml` with these targets and this scrape interval instead of its own.

    A gateway or decoder has the name that `fsr up` gives it as its label `replica`: gateway, decoder-0, decoder-1.
    Raises ValueError if `targets` names a job that the file does not have, or lacks one that it has.
    """
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    if jobs != set(targets):
        raise ValueError(f"targets: jobs are {', '.join(sorted(jobs))}; got {', '.join(sorted(targets))}")
    for job in config["scrape_configs"]:
        for kind in _DISCOVERY:
            job.pop(kind, None)
        addresses = targets[job["job_name"]]
        job["static_configs"] = [{"targets": list(addresses)}]
        if job.pop("relabel_configs", None):  # it makes the label of the address
            names = _names(job["job_name"], len(addresses))
            job["static_configs"] = [
                {"targets": [address], "labels": {"replica": name}}
                for address, name in zip(addresses, names, strict=True)
            ]
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["rule_files"] = [str((HERE / pattern).resolve()) for pattern in config["rule_files"]]
    return str(yaml.safe_dump(config))


def _names(job: str, count: int) -> list[str]:
    return [job] if count == 1 and job != "decoder" else [f"{job}-{i}" for i in range(count)]


@contextlib.contextmanager
def prometheus(targets: Mapping[str, Sequence[str]], port: int, interval: str = "5s") -> Iterator[Prometheus]:
    """A running server. On leaving it is stopped and its data deleted. Raises RuntimeError if it cannot start."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise RuntimeError("prometheus: not installed; run `make tools`")
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "prometheus.yml", Path(folder) / "log"
        config.write_text(configuration(targets, interval))
        command = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        command.append("--enable-feature=exemplar-storage")  # what leads from a histogram to a trace
        with log.open("wb") as out:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=out, stderr=out)
        try:
            _wait(process, port, log)
            yield Prometheus(f"http://127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), _open(f"http://127.0.0.1:{port}/-/ready"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"prometheus: did not start: {log.read_text(errors='replace')[-500:]}")


def main() -> None:
    """Runs the command until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for job in ("gateway", "decoder", "encoder"):
        parser.add_argument(f"--{job}", action="append", required=True, help="metrics address, host:port; repeatable")
    parser.add_argument("--port", type=int, default=9090, help="port of Prometheus")
    options = parser.parse_args()
    targets = {job: getattr(options, job) for job in ("gateway", "decoder", "encoder")}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the server too
    with prometheus(targets, options.port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"Prometheus on {server.url}; Ctrl-C stops it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
