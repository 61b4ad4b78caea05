"""Compares every method at every budget on the frozen sets, with intervals, ablations, tables and plots.

Writes results.json, results.md and plots into --out. Encoded pictures and answers are stored under --out/cache: after a
stop, run the same command again, and it goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from fsr_core.compressor import methods
from fsr_core.evaluation import overlays, plots, report
from fsr_core.evaluation.method_configs import FULL, REFERENCE
from fsr_core.evaluation.question_sets import SET_NAMES, set_size
from fsr_core.evaluation.runner import Plan, Runner

BUDGETS = [32, 16, 8, 4]
QUICK = {"test": 96, "crowded": 24, "distractors": 24, "tiny": 24, "shifted": 24}


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers; write 32,16,8,4") from None


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, as the other `fsr` commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fsr evaluate",
        description=__doc__,
        epilog="example: fsr evaluate --quick --methods fsr,cdpruner --budgets 32,16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few questions of each set, to check that all works")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate"), help="folder for results and cache")
    parser.add_argument("--model", default="fsr-tiny", help="fsr-tiny, or the folder of another checkpoint")
    parser.add_argument("--methods", type=_names, default=list(methods()), help="comma-separated; default: all")
    parser.add_argument("--budgets", type=_whole_numbers, default=BUDGETS, help="kept tokens, comma-separated")
    parser.add_argument("--seeds", type=int, help="seeds of random selection (default 3; 1 with --quick)")
    parser.add_argument("--sets", type=_names, default=list(QUICK), help=f"comma-separated, of {', '.join(SET_NAMES)}")
    parser.add_argument("--limit", type=int, help="how many questions of each set to ask, from the first")
    parser.add_argument("--no-ablations", action="store_true", help="compare methods only")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's own choice")
    parser.add_argument("--json", action="store_true", help="print results.json instead of results.md")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    unknown = [name for name in options.sets if name not in SET_NAMES]
    if unknown:
        raise ValueError(f"--sets: {unknown[0]!r} is unknown; choose from {', '.join(SET_NAMES)}")
    if not options.sets or not options.methods:
        raise ValueError("--sets, --methods: name at least one of each")
    sizes = {name: QUICK.get(name, 96) if options.quick else set_size(name) for name in options.sets}
    limits = sizes if options.limit is None else dict.fromkeys(options.sets, options.limit)
    # FSR comes first: all others are compared with it.
    compared = [REFERENCE, *(name for name in dict.fromkeys(options.methods) if name not in (REFERENCE, FULL))]
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    return Plan(
        sets=limits,
        methods=compared,
        budgets=list(dict.fromkeys(options.budgets)),
        seeds=seeds,
        ablate=not options.no_ablations,
    )


def _commit() -> str:
    """The commit of the code that runs; `unknown` outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _run(options: argparse.Namespace, command: str) -> dict[str, Any]:
    plan, start = _plan(options), time.monotonic()
    runner = Runner(options.model, options.out)
    total = sum(limit * (1 + len(plan.configs(name))) for name, limit in plan.sets.items())
    with tqdm(total=total, unit="answer", file=sys.stderr, mininterval=1) as bar:
        figures = runner.run(plan, bar.update)
    about = {
        "command": command,
        "commit": _commit(),
        "model": options.model,
        "fingerprint": runner.encoder.fingerprint,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - start, 1),
    }
    results = {"about": about} | figures
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "results.md").write_text(report.markdown(results))
    paths = plots.write(results, options.out)
    name, limit = next(iter(plan.sets.items()))
    encoded = runner.encoded(name, limit)
    number = next((i for i, (_, question) in enumerate(encoded.items) if question.kind == "where"), 0)
    budget = 16 if 16 in plan.budgets else plan.budgets[-1]
    paths.append(overlays.write(encoded, number, plan.methods, budget, options.out / "overlays.png"))
    print("\n".join(f"wrote {path}" for path in [options.out / "results.json", *paths]), file=sys.stderr)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Runs `fsr evaluate` with these arguments."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise SystemExit(f"error: --threads: {options.threads} is below 1; leave it out for PyTorch's own choice")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: --out: cannot make {options.out} ({error.strerror}); name a folder") from None
    try:
        results = _run(options, shlex.join(["fsr", "evaluate", *arguments]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(results) if options.json else (options.out / "results.md").read_text())


if __name__ == "__main__":
    main()
