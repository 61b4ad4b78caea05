"""Looks for a method of ours that beats every other: `Volume`, tuned on one half of the validation split.

    python -m benchmarks.tune_volume
    python -m benchmarks.tune_volume --model /models/mine --budgets 8,4 --all-budgets 32,16,8,4

Begins with relevance alone and changes one option at a time, in the order of `steps`. A change stays if the mean over
--budgets grows by more than its standard error. Then the result is compared with every method on the other half, at
--all-budgets: it is better than a method where the interval of the difference lies above zero; intervals hold together.
Only scenes of the validation split are drawn; no held-out set is looked at. Answers are stored under --out, so the same
command continues after a stop.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.validation import HALF, Validation
from benchmarks.volume import FACTORS, Volume, register_variants
from fsr_core import methods
from fsr_core.evaluation.method_configs import Run, runs
from fsr_core.evaluation.statistics import Resampler, verdict

Options = Mapping[str, Any]
Right = Callable[[Run, int], np.ndarray]
Step = Callable[[Options], list[Options]]  # from the options so far to what is tried instead


def steps() -> list[Step]:
    """What is tried, in turn: two factors, their powers and the other options; then a third factor, and these again."""

    def another(now: Options) -> list[Options]:
        return [{**now, name: value} for name in FACTORS if name not in now for value in (0.5, 0.25)]

    def second(now: Options) -> list[Options]:
        return another(now) if any(name in now for name in FACTORS) else []

    def around(name: str, times: float, most: float = 100.0) -> Step:
        def tried(now: Options) -> list[Options]:
            value = now.get(name, getattr(Volume, name))
            return [{**now, name: min(most, value * change)} for change in (1 / times, times)] if value else []

        return tried

    def centred(now: Options) -> list[Options]:
        return [{**now, "centre": not now.get("centre", Volume.centre)}]

    options = [*(around(name, 2) for name in FACTORS), around("floor", 2, 1.0), around("alpha", 1.5), centred]
    return [another, second, *options, second, *options]


def tune(right: Right, budgets: Sequence[int]) -> tuple[Options, list[dict[str, Any]]]:
    """The chosen options of `Volume`, and a row for each that was tried."""

    def scores(options: Options) -> np.ndarray:
        return np.mean([right(Run("volume", "volume", [options]), k) for k in budgets], axis=0)

    def row_of(options: Options, best: np.ndarray) -> dict[str, Any]:
        now = scores(options)
        gain, error = float((now - best).mean()), float((now - best).std(ddof=1) / len(best) ** 0.5)
        return {"options": options, "right": float(now.mean()), "gain": gain, "error": error, "kept": False}

    chosen: Options = {}
    best = scores(chosen)
    rows = [row_of(chosen, best) | {"kept": True}]
    for step in steps():
        tried = [row_of(options, best) for options in step(chosen)]
        rows += tried
        better = [row for row in tried if row["gain"] > row["error"]]
        if better:
            winner = max(better, key=lambda row: row["gain"])
            winner["kept"], chosen = True, winner["options"]
            best = scores(chosen)
    return chosen, rows


def check(right: Right, chosen: Options, compared: Sequence[Run], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Volume minus each method at each budget."""
    ours = Run("volume", "volume", [chosen])
    pairs = [(run, k) for run in compared for k in budgets]
    family = [right(ours, k) - right(run, k) for run, k in pairs]
    rows = []
    for (run, k), estimate in zip(pairs, Resampler(family[0].shape[-1]).simultaneous(family), strict=True):
        row = {
            "method": run.label,
            "budget": k,
            "right": float(right(run, k).mean()),
            "ours": float(right(ours, k).mean()),
        }
        rows.append(row | {"difference": asdict(estimate), "verdict": verdict(estimate)})
    return rows


def _tried(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| options | right | gain (standard error) | kept |", "| --- | --: | --: | --- |"]
    for row in rows:
        options = ", ".join(f"{name} {value}" for name, value in row["options"].items()) or "relevance alone"
        gain = f"{100 * row['gain']:+.1f} ({100 * row['error']:.1f})"
        lines.append(f"| {options} | {100 * row['right']:.1f} | {gain} | {'yes' if row['kept'] else ''} |")
    return "\n".join(lines)


def _checked(rows: Sequence[Mapping[str, Any]], budgets: Sequence[int]) -> str:
    marks = {"wins": " **+**", "loses": " **-**", "ties": ""}
    ours = {row["budget"]: row["ours"] for row in rows}
    lines = [
        f"{len(rows)} comparisons; in 95 % of runs all their intervals hold (max-T bootstrap).",
        "",
        f"| `volume` minus | {' | '.join(f'{k} tokens' for k in budgets)} |",
        "| --- |" + " --: |" * len(budgets),
        f"| (right by itself) | {' | '.join(f'{100 * ours[k]:.1f}' for k in budgets)} |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for row in rows:
            if row["method"] == method:
                mean, low, high = (100 * row["difference"][key] for key in ("mean", "low", "high"))
                cells.append(f"{mean:+.1f} ({low:+.1f}..{high:+.1f}){marks[row['verdict']]}")
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 on; write 8,4")
    return numbers


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fsr-tiny", help="fsr-tiny, or the folder of another checkpoint")
    parser.add_argument("--budgets", type=_numbers, default=[8, 4], help="kept tokens by which options are chosen")
    parser.add_argument("--all-budgets", type=_numbers, default=[32, 16, 8, 4], help="kept tokens of the comparison")
    parser.add_argument("--methods", default=",".join(methods()), help="what it is compared with, comma-separated")
    parser.add_argument("--limit", type=int, default=HALF, help="questions per half")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of random selection")
    parser.add_argument("--out", type=Path, default=Path("runs/volume"), help="folder for encoded pictures and answers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    options = parser.parse_args(arguments)
    if min(options.threads, options.seeds) < 1 or not 2 <= options.limit <= HALF:
        parser.error(f"--threads, --seeds: give at least 1; --limit: give 2 to {HALF}")
    torch.set_num_threads(options.threads)
    register_variants()
    try:
        compared = runs(options.methods.split(","), options.seeds)
        validation = Validation(options.model, options.limit, options.out)
        chosen, tried = tune(validation.right(0), options.budgets)
        checked = check(validation.right(1), chosen, compared, options.all_budgets)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        print(json.dumps({"chosen": asdict(Volume(**chosen)), "tried": tried, "checked": checked}, indent=2))
        return
    print(_tried(tried), _checked(checked, options.all_budgets), sep="\n\n")


if __name__ == "__main__":
    main()
