"""Measures the service on this machine: what it adds, what compression saves, where the time of a request goes.

    make bench                       # or: python -m benchmarks.bench; at most 15 minutes on two cores

It runs short forms of the other benchmarks one after the other, each in a process of its own. After each of them it
writes `runs/bench/results.json` and `runs/bench/report.md`, so that what was measured is there if it is stopped; the
next run of the same code goes on with what is missing (`--again` measures all anew). Figures of a busy machine say
nothing, so the report names the load, and warns. The picture is drawn into `runs/bench/stages.png`. `--page` writes
both into `docs/`, without measuring anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_report import report
from benchmarks.machine import busy_share, code_version, machine

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs/bench"
PAGE, PICTURE = ROOT / "docs/performance.md", ROOT / "docs/img/stages.png"
LIMIT_MINUTES = 15.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One benchmark. `seconds` is what it takes on two quiet cores. `{json}` and `{folder}` in its arguments are the
    file for its figures, if it writes one, and the folder of all results; else its figures are what it prints."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    seconds: float
    read: Callable[[str], Any] = json.loads


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# The most important first: what comes last is left out where time is short.
STEPS: dict[str, Step] = {
    "hop": Step(
        title="what the service adds to a picture",
        module="hop",
        arguments=("--rounds", "60", "--requests", "200", "--json", "{json}"),
        seconds=120,
    ),
    "stages": Step(
        title="where the time of a request goes",
        module="stages",
        arguments=("--rounds", "30", "--large-rounds", "4", "--plot", "{folder}/stages.png", "--json", "{json}"),
        seconds=170,
    ),
    "goodput": Step(
        title="64 against 576 visual tokens under load",
        module="goodput",
        arguments=("--seconds", "40", "--json", "{json}"),
        seconds=150,
    ),
    "costs": Step(
        title="CPU time of each process for a request",
        module="costs",
        arguments=("--requests", "150"),
        seconds=90,
        read=json_lines,
    ),
    "pictures": Step(
        title="CPU time from a picture's file to the tower's input",
        module="picture_cpu",
        arguments=("--rounds", "12"),
        seconds=40,
        read=str,
    ),
    "selection": Step(
        title="selection of tokens",
        module="selection",
        arguments=("--batch", "1", "--repeats", "7", "--json"),
        seconds=60,
    ),
    "follow_ups": Step(
        title="follow-up questions to three replicas behind one proxy",
        module="follow_ups",
        arguments=("--rounds", "3", "--json", "{json}"),
        seconds=110,
    ),
}


def arguments_of(step: Step, name: str, folder: Path) -> list[str]:
    values = {"{json}": str(folder / f"{name}.json"), "{folder}": str(folder)}
    texts = list(step.arguments)
    for mark, value in values.items():
        texts = [text.replace(mark, value) for text in texts]
    return texts


def run(step: Step, name: str, folder: Path, seconds: float) -> Any:
    """The figures of a step. Raises RuntimeError, with the end of its log, if it fails or takes longer than that."""
    command = [sys.executable, "-m", f"benchmarks.{step.module}", *arguments_of(step, name, folder)]
    output, log, own = folder / f"{name}.out", folder / f"{name}.log", folder / f"{name}.json"
    own.unlink(missing_ok=True)
    with output.open("w") as stdout, log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=ROOT, start_new_session=True)
        try:
            code = process.wait(seconds)
        except BaseException as error:  # its services end with it, once it is interrupted
            _interrupt(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"took longer than {seconds:.0f} s; see {log}") from None
            raise
    if code != 0:
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"ended with status {code}: {last}; see {log}")
    try:
        return json.loads(own.read_text()) if own.exists() else step.read(output.read_text())
    except ValueError as error:
        raise RuntimeError(f"printed something else than its figures ({error}); see {output}") from error


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Results and report, each complete at any moment."""
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("report.md", report(results))):
        new = folder / f"{name}.new"
        new.write_text(text)
        new.replace(folder / name)


def earlier(folder: Path, version: str) -> dict[str, Any]:
    """Steps that an earlier run of the same code has measured."""
    try:
        results = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return {}
    steps: dict[str, Any] = results["steps"] if results["machine"]["code"] == version else {}
    return {name: step for name, step in steps.items() if "figures" in step}


def bench(folder: Path, names: list[str], minutes: float, again: bool) -> int:
    """Runs the steps; the number of those that have no figures."""
    folder.mkdir(parents=True, exist_ok=True)
    end, version = time.monotonic() + 60 * minutes, code_version()
    results: dict[str, Any] = {"machine": machine(version), "steps": {} if again else earlier(folder, version)}
    write(folder, results)
    for number, name in enumerate(names, 1):
        step, head = STEPS[name], f"[{number}/{len(names)}] {STEPS[name].title}"
        if name in results["steps"]:
            print(f"{head}: measured before", flush=True)
            continue
        left = end - time.monotonic()
        if left < step.seconds / 2:
            results["steps"][name] = {"error": f"left out: {minutes:g} minutes are over"}
        else:
            print(f"{head}: about {step.seconds:.0f} s of at most {left / 60:.1f} min that are left", flush=True)
            began, busy = time.monotonic(), busy_share(1.0)
            try:
                found = {"figures": run(step, name, folder, left)}
            except RuntimeError as error:
                found = {"error": str(error)}
            seconds = round(time.monotonic() - began, 1)
            results["steps"][name] = {**found, "seconds": seconds, "busy_before": busy}
        if "error" in results["steps"][name]:
            print(f"{head}: {results['steps'][name]['error']}", file=sys.stderr, flush=True)
        write(folder, results)
    print(f"\n{report(results)}\n{folder / 'report.md'}, {folder / 'results.json'}")
    return sum("error" in results["steps"][name] for name in names)


def write_page(folder: Path) -> None:
    """Puts the report and its picture into the documentation. Raises SystemExit if something was not measured."""
    results = json.loads((folder / "results.json").read_text())
    if missing := [name for name in STEPS if "figures" not in results["steps"].get(name, {})]:
        raise SystemExit(f"error: not measured yet: {', '.join(missing)}; run make bench")
    text = report(results, "###").replace("](stages.png)", f"](img/{PICTURE.name})")
    place = re.compile(r"(?<=<!-- begin bench -->\n).*?(?=<!-- end bench -->)", re.DOTALL)
    PAGE.write_text(place.sub(lambda _: text, PAGE.read_text()))
    shutil.copy(folder / "stages.png", PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"steps, comma-separated, of {','.join(STEPS)}")
    parser.add_argument("--minutes", type=float, default=LIMIT_MINUTES, help="most minutes of all steps")
    parser.add_argument("--again", action="store_true", help="measure also what was measured with this code before")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for the results")
    parser.add_argument("--page", action="store_true", help="only write the last results into docs/performance.md")
    options = parser.parse_args()
    names = list(STEPS) if options.only is None else options.only.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"--only: {unknown[0]!r} is unknown; choose from {', '.join(STEPS)}")
    if options.page:
        write_page(options.folder)
        return
    try:
        raise SystemExit(1 if bench(options.folder, names, options.minutes, options.again) else 0)
    except KeyboardInterrupt:
        print(f"stopped; what was measured is in {options.folder}, and the next run goes on", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
