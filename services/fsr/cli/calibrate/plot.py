"""A calibration as a picture."""

from __future__ import annotations

from pathlib import Path

from fsr.cli.calibrate.procedure import Measure, Plan, Result, Verdict

__all__ = ["draw"]

_MARKS = {Verdict.KEPT: "o", Verdict.BELOW: "x", Verdict.OPEN: "d"}
_UNITS: dict[Measure, str] = {
    "agreement": "answers as with all tokens",
    "accuracy": "right answers",
    "relative-accuracy": "right answers, as a share of those of all tokens",
}


def draw(plan: Plan, result: Result, path: Path) -> None:
    """The measure of each budget that was tested, with its interval, over the tokens kept. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, outcomes in enumerate(result.methods):
        tested = [one for one in outcomes if one.evidence.questions]
        kept, means = [one.mean_kept for one in tested], [one.evidence.mean for one in tested]
        axes.plot(kept, means, color=f"C{number}", label=outcomes[0].candidate.method)
        for one in tested:
            low, high = one.evidence.interval(plan.alpha_of_method)
            mean, mark = one.evidence.mean, _MARKS[one.verdict]
            errors = [[max(0.0, mean - low)], [max(0.0, high - mean)]]  # rounding may put a bound beyond the mean
            axes.errorbar(one.mean_kept, mean, yerr=errors, fmt=mark, color=f"C{number}", capsize=3)
    if result.chosen is not None:
        chosen = result.chosen
        axes.plot(chosen.mean_kept, chosen.evidence.mean, "o", ms=16, mfc="none", color="black", label="chosen")
    axes.axhline(plan.target, color="grey", linestyle="--", label=f"target {plan.target:g}")
    axes.set(xlabel="visual tokens kept", ylabel=_UNITS[plan.measure], xscale="log", ylim=(None, 1.01))
    kept = sorted({round(one.mean_kept) for one in result.tested if one.evidence.questions})
    axes.set_xticks(kept, [str(count) for count in kept], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_title("o keeps the target   x is below it   ◇ not decided", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
