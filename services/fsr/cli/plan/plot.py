"""A plan over the rate, as a picture."""

from __future__ import annotations

from pathlib import Path

from fsr.cli.load_report import check_plot
from fsr_core.planning.plan import Plan, over_load, over_rate, rates_around

__all__ = ["draw"]

_LOADS = (0.25, 0.5, 0.75, 1.0, 1.2)  # shares of the planned rate that are simulated


def draw(plan: Plan, path: Path) -> None:
    """GPUs and cost by rate, and the answers' 95th percentile if more or less arrives than was planned for.

    Raises InvalidRequestError if matplotlib is missing or cannot write the file, and OSError.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    rate, rates = plan.workload.rate, rates_around(plan)
    figure = Figure(figsize=(14, 4), layout="constrained")
    gpus, cost, latency = figure.subplots(1, 3)
    for label, points in over_rate(plan, rates).items():
        gpus.step(rates, [point.gpus for point in points], where="post", label=label)
        cost.plot(rates, [point.dollars_per_hour for point in points], label=label)
    for label, loads in over_load(plan, _LOADS).items():
        latency.plot([point.rate for point in loads], [point.answer_p95 for point in loads], "o-", label=label)
    for axes in (gpus, cost):
        axes.axvline(rate, color="grey", linestyle=":")
        axes.set(xlabel="requests/s", xscale="log", yscale="log")
    gpus.set(title="GPUs", ylabel=f"{plan.gpu.name}, decoders and encoders")
    cost.set(title="cost", ylabel="dollars an hour")
    latency.set(title="whole answer, 95th percentile", xlabel=f"requests/s on the plan for {rate:g}/s", ylabel="s")
    latency.set_ylim(bottom=0)
    for axes in (gpus, cost, latency):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(plan.model.name)
    figure.savefig(path, dpi=120)
