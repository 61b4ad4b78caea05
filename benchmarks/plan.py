"""Holds the simulation of `fsr plan` against the running system: answers a second and p95, predicted and measured.

It starts the whole system with the embedded model, without the encoder's cache, and measures the work of a request at
each tier: of one alone, and of 16 that come together, since work that comes together costs less. From these service
times it predicts closed loops of several numbers of clients, in which all tiers and the clients share as many cores of
this machine as the 16 clients kept busy. Each is then measured with the generator of `fsr load`. Progress goes to
standard error as lines of JSON.

    python -m benchmarks.plan
    python -m benchmarks.plan --budgets 16,144 --clients 2,8,32 --out runs/plan
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.costs import free_ports
from benchmarks.service_times import TOGETHER, Costs, costs, tower_seconds
from fsr.cli.local_stack import running
from fsr_core.planning.service_times import ServiceTimes
from fsr_core.planning.simulation import Deployment, Load, simulate
from fsr_core.tiny.scenes import draw, make_scene

SHORT = 2  # tokens of the short answers that show what a token costs beside its step
REQUESTS = {1: 40, TOGETHER: 96}  # of the runs that show the costs, by number of clients
BATCH = 4  # pictures in a usual batch, among which its fixed cost is divided
MAX_RUNNING, PREFILL_TOKENS = 64, 512  # the decoder's defaults
WITHOUT_CACHE = {"cache_mb": "0"}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Service times of a budget, and the deployment that they are simulated on."""

    times: ServiceTimes
    deployment: Deployment


@dataclass(frozen=True, kw_only=True)
class CpuSeconds:
    """CPU seconds by part of the system: of a request, and of each token of its answer, `batch` of them in a step."""

    request: dict[str, float]
    token: dict[str, float]
    batch: float

    @classmethod
    def of(cls, few: Costs, many: Costs, answer: int) -> CpuSeconds:
        """From runs with answers of `SHORT` and of `answer` tokens."""
        token = {part: max(0.0, many.cpu[part] - few.cpu[part]) / (answer - SHORT) for part in few.cpu}
        request = {part: max(0.0, few.cpu[part] - SHORT * token[part]) for part in few.cpu}
        return cls(request=request, token=token, batch=many.batch)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One load: what was predicted, and what was measured."""

    budget: int
    clients: int
    predicted_per_second: float
    measured_per_second: float
    predicted_p95: float
    measured_p95: float

    @property
    def misses(self) -> tuple[float, float]:
        """Relative errors of answers a second and of p95."""
        rate = self.predicted_per_second / self.measured_per_second - 1
        return rate, self.predicted_p95 / self.measured_p95 - 1


def service_times(
    alone: CpuSeconds, together: CpuSeconds, tower: tuple[float, float], prompts_in_a_pass: int
) -> ServiceTimes:
    """Puts together what was measured with one client and with `TOGETHER`.

    What comes together costs less, since more is done at each wake-up, in each batch and each step. So costs have a
    part for each batch or step, and one for each request or token in it.

    Args:
        tower: seconds of a batch of the vision tower, and of each picture in it.
    """
    step, step_answer = _split(alone.token["decoder"], together.token["decoder"], together.batch)
    relay_step, relay = _split(_relay(alone), _relay(together), together.batch)
    prefill_pass, prefill = _split(alone.request["decoder"], together.request["decoder"], prompts_in_a_pass)
    request = together.request
    return ServiceTimes(
        gateway=request["gateway"] + request["caller"],
        relay_step=relay_step,
        relay=relay,
        picture=request["Serve's ingress"] + max(0.0, request["encoder replica"] - tower[1] - tower[0] / BATCH),
        tower_batch=tower[0],
        tower=tower[1],
        prefill_pass=prefill_pass,
        prefill=prefill,
        step=step,
        step_answer=step_answer,
    )


def _split(alone: float, together: float, count: float) -> tuple[float, float]:
    """The part of a cost that `count` pieces share if they come together, and the part of each."""
    if count <= 1 or together >= alone:
        return 0.0, alone
    shared = min(alone, (alone - together) * count / (count - 1))
    return shared, alone - shared


def _relay(cpu: CpuSeconds) -> float:
    return cpu.token["gateway"] + cpu.token["caller"]


def calibrate(
    addresses: Mapping[str, str], pictures: Sequence[bytes], budgets: Sequence[int], answer: int, towers: Any
) -> dict[int, Calibration]:
    """Service times of each budget."""
    calibrations = {}
    for budget in budgets:
        runs = {
            (clients, length): costs(
                addresses, pictures, budget, length, clients, requests=REQUESTS[clients], seconds=20.0
            )
            for clients in REQUESTS
            for length in (SHORT, answer)
        }
        alone, together = (CpuSeconds.of(runs[n, SHORT], runs[n, answer], answer) for n in (1, TOGETHER))
        lone, crowd = runs[1, answer], runs[TOGETHER, answer]
        prompts_in_a_pass = max(1, int(PREFILL_TOKENS // lone.summary.prompt_tokens))
        times = service_times(alone, together, towers[budget], min(prompts_in_a_pass, TOGETHER))
        deployment = Deployment(
            gateways=2,  # the gateway and the caller, whose work counts as the gateway's
            picture_cores=2,  # Serve's ingress and the replica
            answers_at_a_time=MAX_RUNNING,
            prompts_in_a_pass=prompts_in_a_pass,
            # Processes also wait for each other, so a crowd keeps less than all cores busy.
            shared_cores=min(crowd.busy, len(os.sched_getaffinity(0))),
            background=lone.others,
        )
        # What passes at the caller beyond all of this: hops, wake-ups, and waits of Serve.
        simulated = simulate(times, deployment, answer, Load(clients=1, seconds=60.0))
        delay = max(0.0, lone.summary.latency["p50"] - simulated.answer_p50)
        say({"budget": budget, "alone": asdict(alone), "together": asdict(together)})
        calibrations[budget] = Calibration(times=replace(times, delay=delay), deployment=deployment)
        say({"budget": budget, **asdict(calibrations[budget])})
    return calibrations


def compare(
    addresses: Mapping[str, str],
    pictures: Sequence[bytes],
    calibration: Calibration,
    budget: int,
    clients: int,
    options: argparse.Namespace,
) -> Row:
    """Predicts a load and then measures it."""
    load = Load(clients=clients, seconds=60.0, warm_up=10.0)
    predicted = simulate(calibration.times, calibration.deployment, options.answer, load)
    run = costs(addresses, pictures, budget, options.answer, clients, requests=100_000, seconds=options.seconds)
    row = Row(
        budget=budget,
        clients=clients,
        predicted_per_second=predicted.answers_per_second,
        measured_per_second=run.summary.requests_per_second,
        predicted_p95=predicted.answer_p95,
        measured_p95=run.summary.latency["p95"],
    )
    latencies = {"predicted_p50": predicted.answer_p50, "measured_p50": run.summary.latency["p50"]}
    say(asdict(row) | latencies | {"measured_cpu": run.cpu, "others": run.others})
    return row


def say(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> str:
    heads = ["visual tokens", "clients", "answers/s, predicted", "measured", "error", "p95, predicted", "measured"]
    lines = [f"| {' | '.join([*heads, 'error'])} |", "|" + " --: |" * (len(heads) + 1)]
    for row in rows:
        rate, p95 = row.misses
        cells = [str(row.budget), str(row.clients), f"{row.predicted_per_second:.1f}", f"{row.measured_per_second:.1f}"]
        cells += [f"{rate:+.0%}", f"{1000 * row.predicted_p95:.0f} ms", f"{1000 * row.measured_p95:.0f} ms"]
        lines.append(f"| {' | '.join([*cells, f'{p95:+.0%}'])} |")
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=numbers, default=[16, 144], help="visual tokens to keep")
    parser.add_argument("--clients", type=numbers, default=[2, 8, 32], help="clients of each load")
    parser.add_argument("--answer", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--seconds", type=float, default=15.0, help="seconds of each load")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    pictures = []
    for seed in range(32):
        out = io.BytesIO()
        draw(make_scene(seed)).save(out, "PNG")
        pictures.append(out.getvalue())
    towers = {budget: tower_seconds(budget) for budget in options.budgets}
    with (
        tempfile.TemporaryDirectory() as logs,
        running("fsr-tiny", 1, free_ports(40), Path(logs), encoder_options=WITHOUT_CACHE) as addresses,
    ):
        costs(addresses, pictures, options.budgets[0], SHORT, 2, requests=20, seconds=20.0)  # warms up
        calibrations = calibrate(addresses, pictures, options.budgets, options.answer, towers)
        rows = [
            compare(addresses, pictures, calibrations[budget], budget, clients, options)
            for clients in options.clients
            for budget in options.budgets
        ]
    rows.sort(key=lambda row: (row.budget, row.clients))
    print(table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "calibrations": {budget: asdict(calibration) for budget, calibration in calibrations.items()},
            "rows": [asdict(row) for row in rows],
        }
        options.out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
        options.out.with_suffix(".md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
