"""Writes the Grafana dashboards in `dashboards/` from `dashboards.yaml`.

python deploy/grafana/build.py            # write them
python deploy/grafana/build.py --check    # fail if a committed file differs
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
    """The content of `dashboards.yaml`."""
    return dict(yaml.safe_load((HERE / "dashboards.yaml").read_text()))


def variables(declared: dict[str, str], choices: dict[str, Any]) -> list[dict[str, Any]]:
    """Template variables: the data source, one for each label that a viewer can choose, and lists of values."""
    listed: list[dict[str, Any]] = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    ]
    for name, query in declared.items():
        listed.append(
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
    for name, choice in choices.items():
        options = [{"text": value, "value": value, "selected": i == 0} for i, value in enumerate(choice["values"])]
        listed.append(
            {
                "name": name,
                "label": choice["label"],
                "type": "custom",
                "query": ",".join(choice["values"]),
                "current": options[0],
                "options": options,
                "includeAll": False,
                "multi": False,
            }
        )
    return listed


def annotation(source: dict[str, Any]) -> dict[str, Any]:
    """One kind of vertical lines. Grafana has read the query from `target` since version 8, and before from `expr`."""
    query = " ".join(source["query"].split())
    return {
        "name": source["name"],
        "enable": True,
        "datasource": _SOURCE,
        "iconColor": source["colour"],
        "expr": query,
        "target": {"refId": "Anno", "expr": query},
        "titleFormat": source["title"],
        "textFormat": "",
        "tagKeys": source["tags"],
        "useValueForTime": source.get("at") == "value",
    }


def panel(source: dict[str, Any], number: int, position: dict[str, int]) -> dict[str, Any]:
    """One panel of `dashboards.yaml` as Grafana's JSON. `position` is its place and size on Grafana's grid."""
    rendered = {
        "id": number,
        "title": source["title"],
        "description": source["description"],
        "type": source.get("type", "timeseries"),
        "datasource": _SOURCE,
        "gridPos": position,
        "fieldConfig": {
            "defaults": {"unit": source.get("unit", "short"), "min": 0, "custom": {}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(65 + i), "datasource": _SOURCE, "expr": " ".join(expr.split()), "legendFormat": legend}
            for i, (expr, legend) in enumerate(source["queries"])
        ],
    }
    if source.get("exemplars"):
        for target in rendered["targets"]:
            target["exemplar"] = True
    if rendered["type"] == "stat":
        rendered["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    elif source.get("stack"):
        rendered["fieldConfig"]["defaults"]["custom"] = {"stacking": {"mode": "normal"}, "fillOpacity": 30}
    return rendered


def dashboard(name: str, source: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """One dashboard of `dashboards.yaml` as Grafana's JSON. The panels of a row fill 24 columns from left to right."""
    panels: list[dict[str, Any]] = []
    y = number = 0
    for row in source["rows"]:
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
        for panel_source, left, right in zip(row["panels"], edges, edges[1:], strict=False):
            number += 1
            panels.append(panel(panel_source, number, {"x": left, "y": y, "w": right - left, "h": height}))
        y += height

    def used(declared: dict[str, Any]) -> dict[str, Any]:
        return {name: one for name, one in declared.items() if re.search(rf"\${name}\b", json.dumps(panels))}

    return {
        "uid": f"fsr-{name}",
        "title": source["title"],
        "description": source["description"],
        "tags": ["fsr"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,  # the crosshair is in all panels at once
        "templating": {"list": variables(used(whole["variables"]), used(whole["choices"]))},
        "annotations": {"list": [annotation(one) for one in whole["annotations"]]},
        "links": [
            {"type": "dashboards", "title": "FSR", "tags": ["fsr"], "asDropdown": False, "keepTime": True},
        ],
        "panels": panels,
    }


def build() -> dict[Path, str]:
    """The text of each dashboard's file."""
    source = spec()
    return {
        HERE / "dashboards" / f"{name}.json": json.dumps(dashboard(name, board, source), indent=1) + "\n"
        for name, board in source["dashboards"].items()
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
