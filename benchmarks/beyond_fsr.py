"""What could beat FSR at an equal budget: every variant of docs/results.md, on the validation split.

    python -m benchmarks.beyond_fsr
    python -m benchmarks.beyond_fsr --model /models/mine --limit 64 --json

Prints the combined variants, the single changes to FSR, and a check on the other half of the questions, which had no
influence on any choice. Differences are per question; the intervals of a table hold together in 95 % of runs. Encoded
pictures and answers are stored under --out, so the same command continues after a stop. `benchmarks.tune_volume` looks
for a method of ours that beats every other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.validation import HALF, Validation
from benchmarks.variants import register_variants
from fsr_core import VisualTokens, create
from fsr_core.evaluation.method_configs import Run
from fsr_core.evaluation.statistics import Resampler

Row = tuple[str, str, Mapping[str, Any]]  # label, method, options
LIKE_GUIDED = {"floor": 0.2, "share": 0.25, "weight": "phi", "kappa": 0.0}  # what `fsr_guided` is as a `Variant`
TOGETHER: list[Row] = [
    ("`fsr`, the paper's defaults", "fsr", {}),
    ("`cdpruner`, for comparison", "cdpruner", {}),
    ("Focus at most a quarter of K, Scan weighted by phi", "fsr_guided", {"floor": 0.0}),
    ("and saliency at least 0.2 in phi: **`fsr_guided`**", "fsr_guided", {}),
    ("the same, Focus at most half of K", "fsr_guided", {"share": 0.5}),
    ("the same, saliency at least 0.5", "fsr_guided", {"floor": 0.5}),
    ("the same, without saliency", "fsr_guided", {"floor": 1.0}),
    ("the same, Scan by DPP instead of distance", "variant", LIKE_GUIDED | {"scan": "dpp"}),
    ("the same, Focus without its own duplicates", "variant", LIKE_GUIDED | {"distinct": 0.9}),
]
SINGLE: list[Row] = [
    ("centred keys", "fsr", {"centre_keys": True}),
    ("phi smoothed over 3 x 3 patches", "variant", {"smooth": True}),
    ("relevance negated", "fsr", {"relevance_sign": "-"}),
    ("alpha 1", "fsr", {"alpha": 1.0}),
    ("Scan by coverage, unweighted", "variant", {"scan": "coverage"}),
    ("no merging (kappa 0)", "fsr", {"kappa": 0.0}),
    ("merging within two patches only", "variant", {"near": True}),
    ("Scan weighted by saliency", "variant", {"weight": "saliency"}),
    ("alpha 6", "fsr", {"alpha": 6.0}),
    ("Focus at most a quarter of K", "variant", {"share": 0.25}),
    ("Focus at most half of K", "variant", {"share": 0.5}),
    ("Focus without its own duplicates", "variant", {"distinct": 0.9}),
    ("Scan by DPP, weighted by relevance", "variant", {"scan": "dpp", "weight": "relevance"}),
    ("Scan by coverage, weighted by phi", "variant", {"scan": "coverage", "weight": "phi"}),
    ("Scan by coverage, weighted by relevance", "variant", {"scan": "coverage", "weight": "relevance"}),
    ("rho 0.5", "fsr", {"rho": 0.5}),
    ("saliency left out (beta 0)", "fsr", {"beta": 0.0}),
    ("Scan weighted by relevance", "variant", {"weight": "relevance"}),
]
NAMED: list[Row] = [(f"`{name}`", name, {}) for name in ("fsr", "cdpruner", "fsr_guided")]
# Rows (the first one is the reference), budgets, and the half of the questions.
TABLES: dict[str, tuple[list[Row], tuple[int, ...], int]] = {
    "together": (TOGETHER, (4, 8, 12, 16, 32), 0),
    "single": (TOGETHER[:1] + SINGLE, (8, 16, 32), 0),
    "check": (NAMED, (8, 16, 32, 48), 1),
    "check against cdpruner": (NAMED[1:], (8, 16, 32, 48), 1),
}


def verify(samples: Sequence[VisualTokens]) -> None:
    """Raises ValueError unless `Variant` equals FSR, and with `LIKE_GUIDED` equals `fsr_guided`."""
    for (method, options), k in product((("fsr", {}), ("fsr_guided", LIKE_GUIDED)), (4, 16, 48)):
        methods = create(method), create("variant", **options)
        both = (one.compress_batch(samples, [k] * len(samples)) for one in methods)
        for (a, b), part in product(zip(*both, strict=True), ("features", "index", "stage", "merged_into")):
            if not torch.equal(getattr(a, part), getattr(b, part)):
                raise ValueError(f"variant: {part} differ from those of {method} at {k} tokens")


def measure(model: str, limit: int, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures by table and row, as shares."""
    validation, resampler = Validation(model, limit, out), Resampler(limit)
    verify(validation.samples()[:16])
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, (rows, budgets, half) in TABLES.items():
        right, means = validation.right(half), []
        figures[name] = []
        for label, method, options in rows:
            by_budget = {k: right(Run(label, method, [options]), k) for k in budgets}
            means.append(np.mean(list(by_budget.values()), axis=0))
            row = {"label": label, "method": method, "options": options}
            figures[name].append(row | {"right": {k: float(some.mean()) for k, some in by_budget.items()}})
        for row, estimate in zip(figures[name], resampler.simultaneous([m - means[0] for m in means]), strict=True):
            row["difference"] = asdict(estimate)
    return figures


def _points(row: Mapping[str, Any]) -> str:
    mean, low, high = (round(100 * row["difference"][key], 1) + 0.0 for key in ("mean", "low", "high"))  # no -0.0
    return f"{mean:+.1f} ({low:+.1f}..{high:+.1f})"


def _wide(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per variant, one column per budget."""
    lines = [
        f"{len(rows) - 1} comparisons:",
        "",
        f"| variant | {' | '.join(map(str, rows[0]['right']))} | against `{rows[0]['method']}` |",
    ]
    lines.append(f"| --- |{' --: |' * (len(rows[0]['right']) + 1)}")
    for row in rows:
        shares = " | ".join(f"{100 * share:.1f}" for share in row["right"].values())
        lines.append(f"| {row['label']} | {shares} | {'' if row is rows[0] else _points(row) + ' '}|")
    return "\n".join(lines)


def _paired(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two changes per line."""
    cells, half = [f"{row['label']} | {_points(row)}" for row in rows], len(rows) // 2
    lines = [
        f"{len(rows)} comparisons:",
        "",
        "| change | points | | change | points |",
        "| --- | --: | --- | --- | --: |",
    ]
    return "\n".join(lines + [f"| {a} | | {b} |" for a, b in zip(cells[:half], cells[half:], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fsr-tiny", help="fsr-tiny, or the folder of another checkpoint")
    parser.add_argument("--limit", type=int, default=HALF, help="questions per half")
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"), help="folder for encoded pictures and answers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    options = parser.parse_args()
    if __spec__ is None:  # stored answers depend on the code of the method, which is found by its module's name
        parser.error("start it as python -m benchmarks.beyond_fsr")
    if options.threads < 1 or not 1 <= options.limit <= HALF:
        parser.error(f"--threads: give at least 1; --limit: give 1 to {HALF}")
    torch.set_num_threads(options.threads)
    register_variants()
    try:
        figures = measure(options.model, options.limit, options.out)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    together, single, *checks = figures.values()
    print(_wide(together), _paired(single[1:]), *map(_wide, checks), sep="\n\n")


if __name__ == "__main__":
    main()
