"""Compares load runs: as a table, as JSON, as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from fsr.cli.load_summary import Summary
from fsr.client.errors import InvalidRequestError

__all__ = ["Row", "as_json", "check_plot", "markdown", "plot"]

_RATES = ("requests/s", "tokens/s", "goodput/s", "in bound")
_TIMES = ("TTFT p50", "TTFT p95", "latency p50", "latency p95", "latency p99")
_HEADINGS = ("budget", "load", *_RATES, *_TIMES, "tokens kept", "errors", "failovers")


@dataclass(frozen=True)
class Row:
    """One run. `budget` is as the user wrote it; `load` is the number of clients, or a rate such as `5/s`."""

    budget: str
    load: str
    summary: Summary

    def cells(self) -> tuple[str, ...]:
        s = self.summary
        rates = (f"{s.requests_per_second:.1f}", f"{s.tokens_per_second:.0f}", f"{s.goodput:.1f}")
        times = (s.ttft["p50"], s.ttft["p95"], s.latency["p50"], s.latency["p95"], s.latency["p99"])
        kept = "-" if isnan(s.visual_tokens) else f"{s.visual_tokens:.0f}"
        counts = (kept, str(sum(s.errors.values())), str(s.failovers))
        return (self.budget, self.load, *rates, f"{s.good_share:.0%}", *map(_milliseconds, times), *counts)


def _milliseconds(seconds: float) -> str:
    return "-" if isnan(seconds) else f"{seconds * 1000:.0f} ms"


def markdown(rows: Sequence[Row], bound: float) -> str:
    """A Markdown table of all runs, and why requests failed.

    `bound`: seconds up to which an answer counts for goodput.
    """
    lines = [_HEADINGS, tuple("---" if i < 2 else "--:" for i in range(len(_HEADINGS)))]
    lines += [row.cells() for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    failures = [
        f"- budget {row.budget}, load {row.load}: {count} x {reason}"
        for row in rows
        for reason, count in row.summary.reasons.items()
    ]
    why = "".join(f"{line}\n" for line in ("", "Errors:", "", *failures)) if failures else ""
    return f"{table}\n\nGoodput: answers complete within {bound:g} s. Latencies at the client.\n{why}"


def as_json(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """Settings and every figure, for other tools; NaN becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(inner) for name, inner in value.items()}
        return None if isinstance(value, float) and isnan(value) else value

    runs = [{"budget": row.budget, "load": row.load} | finite(asdict(row.summary)) for row in rows]
    return json.dumps({"settings": settings, "runs": runs}, indent=2)


def check_plot(path: Path) -> None:
    """Raises InvalidRequestError if matplotlib is missing or cannot write a file of that ending."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise InvalidRequestError("--plot: needs matplotlib; pip install matplotlib, or leave out --plot") from error
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise InvalidRequestError(f"--plot: {path} has no ending that matplotlib can write; use load.png")


def plot(rows: Sequence[Row], path: Path, bound: float) -> None:
    """Throughput, goodput, and 95th percentiles of TTFT and latency against load, one line for each budget.

    Raises as `check_plot` does.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    curves: dict[str, tuple[str, Callable[[Summary], float]]] = {
        "throughput": ("answers a second", lambda s: s.requests_per_second),
        f"goodput: answers within {bound:g} s": ("answers a second", lambda s: s.goodput),
        "time to first token, 95th percentile": ("ms", lambda s: s.ttft["p95"] * 1000),
        "time to the whole answer, 95th percentile": ("ms", lambda s: s.latency["p95"] * 1000),
    }
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (title, (unit, value)) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for budget in dict.fromkeys(row.budget for row in rows):
            line = [row for row in rows if row.budget == budget]
            loads, values = [row.load for row in line], [value(row.summary) for row in line]
            axes.plot(loads, values, marker="o", label=f"budget {budget}")
        axes.set(xlabel="load", ylabel=unit, title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
