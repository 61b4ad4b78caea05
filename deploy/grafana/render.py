"""Pictures of the dashboards without a Grafana: every panel's queries, asked of a Prometheus and drawn with matplotlib.

python -m deploy.grafana.render --prometheus http://127.0.0.1:9090 --seconds 900 --out docs/img
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from deploy.grafana.queries import dashboards, fill
from deploy.prometheus.local import Prometheus, Series

__all__ = ["render"]

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
_SUFFIX = {"bytes": "B", "Bps": "B/s", "flop": "FLOP", "flops": "FLOP/s", "reqps": "req/s"}


def _written(value: float, unit: str) -> str:
    """A value as Grafana would write it in `unit`."""
    if not math.isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    size, prefix = next((p for p in _PREFIXES if abs(value) >= p[0]), (1, ""))
    return f"{value / size:.3g} {prefix}{_SUFFIX.get(unit, '')}".rstrip()


def _legend(pattern: str, series: Series) -> str:
    for label, value in series.labels.items():
        pattern = pattern.replace("{{" + label + "}}", value)
    return pattern


def _draw(axes: Axes, panel: dict[str, Any], server: Prometheus, start: float, end: float, step: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rate = f"{max(4 * round(step), 15)}s"
    told = [
        (_legend(target["legendFormat"], series), series)
        for target in panel["targets"]
        for series in server.range(fill(target["expr"], rate, f"{round(end - start)}s"), start, end, step)
    ]
    axes.set_title(panel["title"], fontsize=9, loc="left")
    if not told:
        axes.axis("off")
        axes.text(0.5, 0.5, "no data", fontsize=9, ha="center", va="center", color="grey")
        return
    if panel["type"] == "stat":
        axes.axis("off")
        axes.text(0.5, 0.5, _written(told[0][1].points[-1][1], unit), fontsize=20, ha="center", color="#1f6f43")
        return
    lines = [([t - end for t, _ in s.points], [v for _, v in s.points], name) for name, s in told]
    if panel["fieldConfig"]["defaults"]["custom"].get("stacking"):
        shared = sorted({t for x, _, _ in lines for t in x})
        rows = [[dict(zip(x, y, strict=True)).get(t, 0.0) for t in shared] for x, y, _ in lines]
        axes.stackplot(shared, [[v if math.isfinite(v) else 0.0 for v in row] for row in rows], alpha=0.7)
        axes.legend([name for *_, name in lines], fontsize=6, frameon=False)
    else:
        for x, y, name in lines:
            axes.plot(x, y, linewidth=1.2, label=name)
        axes.legend(fontsize=6, frameon=False)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _written(value, unit)))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.2)


def render(server: Prometheus, folder: str | Path, seconds: float, step: float) -> list[Path]:
    """One PNG a dashboard of the last `seconds`, a point every `step` seconds. Returns the files."""
    written = []
    end = time.time()
    for name, board in dashboards().items():
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
        figure = pyplot.figure(figsize=(13, rows * 0.3), dpi=80)
        grid = figure.add_gridspec(rows, 24, left=0.05, right=0.99, top=0.96, bottom=0.02, wspace=4)
        for panel in board["panels"]:
            at = panel["gridPos"]
            if panel["type"] == "row":
                title = figure.add_subplot(grid[at["y"], :])
                title.axis("off")
                title.text(-0.03, 0.3, panel["title"], fontsize=10, weight="bold")
                continue
            cell = grid[at["y"] + 1 : at["y"] + at["h"] - 1, at["x"] : at["x"] + at["w"]]
            _draw(figure.add_subplot(cell), panel, server, end - seconds, end, step)
        figure.suptitle(board["title"], fontsize=12, x=0.01, ha="left")
        path = Path(folder) / f"dashboard-{name}.png"
        figure.savefig(path, pil_kwargs={"optimize": True})
        pyplot.close(figure)
        written.append(path)
    return written


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="the server's address")
    parser.add_argument("--seconds", type=float, default=900, help="how far to look back")
    parser.add_argument("--out", default="docs/img", help="folder of the pictures")
    options = parser.parse_args()
    step = max(1.0, options.seconds / 240)
    for path in render(Prometheus(options.prometheus), options.out, options.seconds, step):
        print(path)


if __name__ == "__main__":
    main()
