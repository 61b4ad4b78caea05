"""Measures time to first token at the client: few visual tokens against all, first question against second question.

It starts the whole system and asks with each budget in turn, so that other load on the machine affects all alike.
It asks about a new picture each time ("first"), and asks again when the encoder has cached its features ("second").
It prints medians without the first rounds.

    python -m benchmarks.ttft
    python -m benchmarks.random_llava runs/llava-135m
    python -m benchmarks.ttft --model runs/llava-135m --budgets 64,576
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from statistics import median
from time import perf_counter

from tqdm import tqdm

from fsr.cli.local_stack import running
from fsr.client import Client
from fsr_core.tiny.scenes import SEEDS, draw, make_scene

WARM_UP = 3
QUESTION = "How many red shapes are there?"


def picture(seed: int) -> bytes:
    out = BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


def first_token(client: Client, image: bytes, budget: int) -> tuple[float, int]:
    """Milliseconds from the call to the first chunk of the answer, and the visual tokens before compression."""
    began, first, before = perf_counter(), 0.0, 0
    for chunk in client.stream(image, QUESTION, budget=budget, max_tokens=4):
        first = first or 1000 * (perf_counter() - began)
        before = chunk.usage.visual_tokens_in if chunk.usage else before
    return first, before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fsr-tiny", help="fsr-tiny or a checkpoint folder")
    parser.add_argument("--budgets", default="16,144", help="visual tokens to keep, comma-separated")
    parser.add_argument("--repeats", type=int, default=30, help="rounds that count")
    parser.add_argument("--port", type=int, default=47000, help="first of twenty free ports in a row")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    budgets = [int(part) for part in options.budgets.split(",")]
    timings: dict[tuple[int, str], list[float]] = {(b, turn): [] for b in budgets for turn in ("first", "second")}
    seed, before = SEEDS["validation"][0], 0
    logs = Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    with running(options.model, 1, options.port, logs) as addresses, Client(addresses["gateway"]) as client:
        for _ in tqdm(range(WARM_UP + options.repeats), desc="rounds", file=sys.stderr):
            for budget in budgets:
                seed += 1
                image = picture(seed)
                for turn in ("first", "second"):
                    milliseconds, before = first_token(client, image, budget)
                    timings[budget, turn].append(milliseconds)
    medians = {key: median(values[WARM_UP:]) for key, values in timings.items()}
    if options.json:
        rows = [{"budget": b, "turn": t, "of": before, "ttft_ms": value} for (b, t), value in medians.items()]
        print(json.dumps({"model": options.model, "rows": rows}))
        return
    most = max(budgets)
    print(f"| visual tokens of {before} | first question, ms | second question, ms | all / these, first | second |")
    print("| --: | --: | --: | --: | --: |")
    for budget in budgets:
        first, second = medians[budget, "first"], medians[budget, "second"]
        ratios = [medians[most, turn] / medians[budget, turn] for turn in ("first", "second")]
        print(f"| {budget} | {first:.0f} | {second:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
