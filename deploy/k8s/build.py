"""Writes `base/prometheusrule.yaml`: the rules of deploy/prometheus/rules as the Prometheus operator takes them.

python deploy/k8s/build.py            # write it
python deploy/k8s/build.py --check    # fail if the committed file differs
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
TARGET = HERE / "base" / "prometheusrule.yaml"


def build() -> str:
    """The manifest's text."""
    rules = sorted((HERE.parent / "prometheus" / "rules").glob("*.yml"))
    groups = [group for path in rules for group in yaml.safe_load(path.read_text())["groups"]]
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "fsr"},
        "spec": {"groups": groups},
    }
    return f"# Written by deploy/k8s/build.py.\n{yaml.safe_dump(manifest, sort_keys=False, width=120)}"


def main() -> None:
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() != build():
            raise SystemExit(f"stale: {TARGET.name}; run python deploy/k8s/build.py")
    else:
        TARGET.write_text(build())


if __name__ == "__main__":
    main()
