"""Plots of a run, written as PNG files. No display is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from fsr_core.evaluation.method_configs import REFERENCE
from fsr_core.evaluation.report import by_method

__all__ = ["write"]

_MARKERS = "os^vD<>pP*Xhd"


def _styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """FSR is thick and black; the others differ in colour and mark."""
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    styles = {}
    for i, method in enumerate(methods):
        styles[method] = {
            "color": colours[i % 20],
            "marker": _MARKERS[i % len(_MARKERS)],
            "lw": 1.2,
            "ms": 5,
            "zorder": 2,
        }
    styles[REFERENCE] = {"color": "black", "marker": "o", "lw": 2.4, "ms": 6, "zorder": 3}
    return styles


def _against_budget(axes: Any, set_results: dict[str, Any]) -> None:
    methods = by_method(set_results)
    for i, (method, style) in enumerate(_styles(list(methods)).items()):
        budgets = sorted(methods[method])
        estimates = [methods[method][k]["accuracy"] for k in budgets]
        means = [100 * e["mean"] for e in estimates]
        errors = [[100 * (e["mean"] - e["low"]) for e in estimates], [100 * (e["high"] - e["mean"]) for e in estimates]]
        # Slightly apart, so that intervals do not cover each other.
        places = [k * 2 ** ((i - len(methods) / 2) / 60) for k in budgets]
        axes.errorbar(places, means, yerr=errors, label=method, elinewidth=0.8, **style)
    axes.axhline(100 * set_results["full"]["accuracy"]["mean"], color="grey", ls="--", lw=1, label="all tokens")
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(k) for k in budgets])
    axes.set_xlabel("tokens kept")
    axes.set_ylabel("percent right")
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def _budget_plot(results: dict[str, Any], folder: Path) -> Path:
    name, set_results = next(iter(results["sets"].items()))
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    _against_budget(axes, set_results)
    axes.set_title(f"Accuracy against budget, {name} set, {set_results['questions']} questions, 95 % intervals")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, folder / "accuracy-budget.png")


def _sets_plot(results: dict[str, Any], folder: Path) -> Path | None:
    others = list(results["sets"].items())[1:]
    if not others:
        return None
    figure = Figure(figsize=(4.2 * len(others), 4))
    grid = figure.subplots(1, len(others), squeeze=False)
    for axes, (name, set_results) in zip(grid[0], others, strict=True):
        _against_budget(axes, set_results)
        axes.set_title(name)
    grid[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return _save(figure, folder / "accuracy-harder.png")


def _kinds_plot(results: dict[str, Any], folder: Path) -> Path:
    set_results = next(iter(results["sets"].values()))
    methods, kinds = by_method(set_results), list(set_results["full"]["kinds"])
    figure = Figure(figsize=(14, 6.5))
    grid = figure.subplots(2, -(-len(kinds) // 2), sharex=True, squeeze=False)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for method, style in _styles(list(methods)).items():
            budgets = sorted(methods[method])
            axes.plot(budgets, [100 * methods[method][k]["kinds"][kind] for k in budgets], label=method, **style)
        axes.axhline(100 * set_results["full"]["kinds"][kind], color="grey", ls="--", lw=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(k) for k in budgets])
        axes.set_title(kind)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(kinds) :]:
        axes.set_visible(False)
    grid[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0))
    figure.supxlabel("tokens kept")
    figure.supylabel("percent right")
    return _save(figure, folder / "accuracy-kinds.png")


def _time_plot(results: dict[str, Any], folder: Path) -> Path | None:
    set_results = next(iter(results["sets"].values()))
    if "milliseconds" not in set_results:
        return None
    methods, measured = by_method(set_results), set_results["milliseconds"][0]
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for method, style in _styles(list(methods)).items():
        budgets = sorted(methods[method])
        times = [measured["times"][method][k] for k in budgets]
        axes.plot(times, [100 * methods[method][k]["accuracy"]["mean"] for k in budgets], label=method, **style)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds of selection per picture (this machine, one picture at a time)")
    axes.set_ylabel("percent right")
    axes.set_title(f"Accuracy against selection time, budgets {', '.join(map(str, budgets))}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _save(figure, folder / "accuracy-time.png")


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """Writes every plot that the results allow, and returns the files."""
    paths = [plot(results, folder) for plot in (_budget_plot, _sets_plot, _kinds_plot, _time_plot)]
    return [path for path in paths if path is not None]
