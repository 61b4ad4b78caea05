"""Draws the dashboards without Grafana: asks a Prometheus each panel's queries and plots them with matplotlib.

python -m deploy.grafana.render --prometheus http://127.0.0.1:9090 --seconds 900 --out docs/img
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from deploy.grafana.queries import dashboards, fill
from deploy.prometheus.local import Prometheus, Series

__all__ = ["format_value", "render"]

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
_COLUMN, _ROW = 14 / 24, 0.32  # inches of one column and of one row of Grafana's grid
_SUFFIX = {"bytes": "B", "Bps": "B/s", "si:FLOP": "FLOP", "flops": "FLOP/s", "reqps": "req/s"}


def format_value(value: float, unit: str) -> str:
    """The value as Grafana writes it; `unit` is one of Grafana's ids."""
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


def _moments(server: Prometheus, annotation: dict[str, Any], start: float, end: float, step: float) -> list[float]:
    """When something of this kind happened or began."""
    moments: set[float] = set()
    for series in server.range(fill(annotation["expr"]), start, end, step):
        if annotation["useValueForTime"]:
            moments |= {value / 1000 for _, value in series.points}
        else:
            active = [t for t, value in series.points if value > 0]
            moments |= {t for before, t in zip([-math.inf, *active], active, strict=False) if t - before > 1.5 * step}
    return [moment for moment in sorted(moments) if start < moment < end]


def _draw(axes: Axes, panel: dict[str, Any], server: Prometheus, start: float, end: float, step: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rate = f"{max(4 * round(step), 15)}s"
    plotted = [
        (fill(_legend(target["legendFormat"], series)), series)
        for target in panel["targets"]
        for series in server.range(fill(target["expr"], rate, f"{round(end - start)}s"), start, end, step)
    ]
    axes.set_title(panel["title"], fontsize=9, loc="left")
    if not plotted or panel["type"] == "stat":
        axes.axis("off")
        values = [(name, format_value(series.points[-1][1], unit)) for name, series in plotted]
        text, size = (values[0][1], 20) if len(values) == 1 else ("\n".join(f"{v} {name}" for name, v in values), 12)
        if not values:
            text, size = "no data", 9
        axes.text(0.5, 0.4, text, fontsize=size, ha="center", va="center", color="#1f6f43")
        return
    lines = [([t - start for t, _ in s.points], [v for _, v in s.points], name) for name, s in plotted]
    stacked = bool(panel["fieldConfig"]["defaults"]["custom"].get("stacking"))
    colours = pyplot.colormaps["tab10" if len(lines) <= 10 else "tab20"]
    axes.set_prop_cycle(color=[colours(i) for i in range(colours.N)])
    if stacked:
        shared = sorted({t for x, _, _ in lines for t in x})
        rows = [[dict(zip(x, y, strict=True)).get(t, 0.0) for t in shared] for x, y, _ in lines]
        filled = [[v if math.isfinite(v) else 0.0 for v in row] for row in rows]
        axes.stackplot(shared, filled, alpha=0.7, labels=[name for *_, name in lines])
    else:
        for x, y, name in lines:
            axes.plot(x, y, linewidth=1.2, label=name)
    axes.set_xlim(0, end - start)
    most = max((v for _, y, _ in lines for v in y if math.isfinite(v)), default=0) or 1
    axes.set_ylim(-0.02 * most, None if stacked else 1.08 * most)  # so that a line at 0 can be seen
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{round(t) // 60}:{round(t) % 60:02}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, unit)))
    axes.tick_params(labelsize=6.5)
    axes.grid(alpha=0.2)


def _place(axes: Axes, whole: Sequence[float], left: float, top: float, width: float, height: float) -> None:
    """Places a panel and its legend on a figure of size `whole`. Sizes are in inches, from the top left corner."""
    names = axes.get_legend_handles_labels()[1]
    rows = 0
    if names:
        columns = max(1, int(width / (max(map(len, names)) * 0.05 + 0.3)))
        rows = math.ceil(len(names) / columns)
        corner, tight = (-0.02, -0.22 / (height - 0.65 - 0.13 * rows)), {"columnspacing": 1, "labelspacing": 0.2}
        axes.legend(
            loc="upper left", bbox_to_anchor=corner, ncols=columns, fontsize=6.5, frameon=False, borderpad=0, **tight
        )
    bottom = 0.35 + 0.13 * rows
    inner = (width - 0.75, height - 0.3 - bottom)
    axes.set_position(
        ((left + 0.6) / whole[0], 1 - (top + height - bottom) / whole[1], inner[0] / whole[0], inner[1] / whole[1])
    )


def _save(figure: Figure, path: Path) -> None:
    """As a PNG of 256 colours, which is a third as large."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    Image.open(whole).convert("RGB").quantize(256).save(path, optimize=True)


def _picture(server: Prometheus, board: dict[str, Any], start: float, end: float, step: float) -> Figure:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = pyplot.figure(figsize=(14, 0.4 + rows * _ROW), dpi=80)
    figure.text(0.012, 1 - 0.3 / figure.get_figheight(), f"{board['title']}   (time: min:s)", fontsize=12)
    events = {one["iconColor"]: _moments(server, one, start, end, step) for one in board["annotations"]["list"]}
    for panel in board["panels"]:
        at = panel["gridPos"]
        left, top = at["x"] * _COLUMN, 0.4 + at["y"] * _ROW
        if panel["type"] == "row":
            down = 1 - (top + 0.25) / figure.get_figheight()
            figure.text(0.012, down, panel["title"], fontsize=10, weight="bold")
            continue
        axes = figure.add_subplot()
        _draw(axes, panel, server, start, end, step)
        for colour, moments in events.items() if axes.axison else ():
            for moment in moments:
                axes.axvline(moment - start, color=colour, linestyle="--", linewidth=0.8)
        _place(axes, tuple(figure.get_size_inches()), left, top, at["w"] * _COLUMN, at["h"] * _ROW)
    return figure


def render(server: Prometheus, folder: str | Path, seconds: float, step: float) -> list[Path]:
    """Draws one PNG per dashboard: the last `seconds`, one point every `step` seconds. Returns the files."""
    paths = []
    end = time.time()
    for name, board in dashboards().items():
        figure = _picture(server, board, end - seconds, end, step)
        path = Path(folder) / f"dashboard-{name}.png"
        _save(figure, path)
        pyplot.close(figure)
        paths.append(path)
    return paths


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="the server's address")
    parser.add_argument("--seconds", type=float, default=900, help="length of time to draw, up to now")
    parser.add_argument("--out", default="docs/img", help="folder for the pictures")
    options = parser.parse_args()
    step = max(1.0, options.seconds / 240)
    for path in render(Prometheus(options.prometheus), options.out, options.seconds, step):
        print(path)


if __name__ == "__main__":
    main()
