"""The Prometheus queries of the committed dashboards, and how to fill in Grafana's variables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Query", "dashboards", "fill", "metrics", "queries", "selectors"]

FOLDER = Path(__file__).parent / "dashboards"
_METRIC = re.compile(r"(?:\b[a-z_]+:)?\b(?:ray_)?(?:fsr|serve)_\w+(?::\w+)?|\bup\b")


@dataclass(frozen=True)
class Query:
    """One query of one panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str

    @property
    def legend_labels(self) -> list[str]:
        """Labels that the legend shows, so every series must have them."""
        return re.findall(r"{{(\w+)}}", self.legend)


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def fill(expr: str, rate: str = "1m", span: str = "1h") -> str:
    """`expr` with Grafana's variables filled in.

    `rate` is the rate interval and `span` the time range of the dashboard. A variable with a list of values has its
    default; every other one matches all values.
    """
    expr = expr.replace("$__rate_interval", rate).replace("$__range", span)
    return re.sub(r"\$(\w+)", lambda variable: _defaults().get(variable[1], ".*"), expr)


@cache
def _defaults() -> dict[str, str]:
    """Of the variables that have a list of values."""
    listed = [variable for board in dashboards().values() for variable in board["templating"]["list"]]
    return {one["name"]: one["current"]["value"] for one in listed if one["type"] == "custom"}


def queries() -> Iterator[Query]:
    """Every query of every panel."""
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield Query(name, panel["title"], target["expr"], target["legendFormat"])


def selectors(expr: str) -> list[str]:
    """Selectors of the series that an expression reads: names with their label matchers, `name{...}`."""
    return [m[0] for m in re.finditer(rf"(?:{_METRIC.pattern})(?:{{[^}}]*}})?", expr)]


def metrics(expr: str) -> set[str]:
    """Names of the series that an expression reads, with histogram suffixes."""
    return {selector.partition("{")[0] for selector in selectors(expr)}
