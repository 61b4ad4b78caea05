"""Writes the Grafana dashboards in `dashboards/` from `dashboards.yaml`.

python deploy/grafana/build.py            # write them
python deploy/grafana/build.py --check    # fail where a committed file differs
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _HEIGHT = 24, 8


def spec() -> dict[str, Any]:
    """What `dashboards.yaml` says."""
    return dict(yaml.safe_load((HERE / "dashboards.yaml").read_text()))


def variables(declared: dict[str, str]) -> list[dict[str, Any]]:
    """Template variables: the data source, and one for each label that can be chosen."""
    chosen = [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]
    for name, query in declared.items():
        chosen.append(
            {
                "name": name,
                "label": name.capitalize(),
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": name},
                "definition": query,
                "refresh": 2,
                "includeAll": True,
                "allValue": ".*",
                "multi": True,
                "current": {"text": "All", "value": "$__all"},
                "sort": 1,
            }
        )
    return chosen


def panel(wanted: dict[str, Any], number: int, place: dict[str, int]) -> dict[str, Any]:
    """One panel; `queries` are pairs of expression and legend, `place` is where it lies on the grid."""
    made = {
        "id": number,
        "title": wanted["title"],
        "description": wanted["description"],
        "type": wanted.get("type", "timeseries"),
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": wanted.get("unit", "short"), "min": 0, "custom": {}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": " ".join(expr.split()), "legendFormat": legend}
            for i, (expr, legend) in enumerate(wanted["queries"])
        ],
    }
    if made["type"] == "stat":
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    elif wanted.get("stack"):
        made["fieldConfig"]["defaults"]["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return made


def dashboard(name: str, wanted: dict[str, Any], declared: dict[str, str]) -> dict[str, Any]:
    """One dashboard: rows of panels that fill 24 columns from left to right."""
    panels: list[dict[str, Any]] = []
    y = number = 0
    for row in wanted["rows"]:
        number += 1
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": row["title"],
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
            }
        )
        y, height, count = y + 1, row.get("height", _HEIGHT), len(row["panels"])
        edges = [round(_COLUMNS * i / count) for i in range(count + 1)]
        for one, left, right in zip(row["panels"], edges, edges[1:], strict=False):
            number += 1
            panels.append(panel(one, number, {"x": left, "y": y, "w": right - left, "h": height}))
        y += height
    used = {name for name in declared if re.search(rf"\${name}\b", json.dumps(panels))}
    return {
        "uid": f"fsr-{name}",
        "title": wanted["title"],
        "description": wanted["description"],
        "tags": ["fsr"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables({name: query for name, query in declared.items() if name in used})},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "FSR", "tags": ["fsr"], "asDropdown": False, "keepTime": True},
        ],
        "panels": panels,
    }


def build() -> dict[Path, str]:
    """Text of each dashboard's file."""
    told = spec()
    return {
        HERE / "dashboards" / f"{name}.json": json.dumps(dashboard(name, wanted, told["variables"]), indent=1) + "\n"
        for name, wanted in told["dashboards"].items()
    }


def main() -> None:
    stale = {path: text for path, text in build().items() if not path.exists() or path.read_text() != text}
    if "--check" in sys.argv[1:] and stale:
        raise SystemExit(f"stale: {', '.join(path.name for path in stale)}; run python {Path(__file__).name}")
    for path, text in stale.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
