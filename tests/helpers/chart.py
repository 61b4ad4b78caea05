"""The Helm chart as Helm's own library renders it, and one form for its manifests and those of kustomize."""

import re
from copy import deepcopy
from typing import Any

import helm_python
import yaml

from helpers.manifests import ROOT, parsed

CHART = ROOT / "deploy/helm/fsr"
CLUSTER = yaml.safe_load((CHART / "values-cluster.yaml").read_text())
RELEASE = "zz9"

# What differs between the chart and kustomize, and why. Everything else must be equal.
LABELS_OF_THE_CHART = {
    "app.kubernetes.io/instance": "several releases may share a namespace, so selectors name the release",
    "app.kubernetes.io/managed-by": "a convention of Helm",
    "helm.sh/chart": "a convention of Helm",
}
ANNOTATIONS_OF_THE_CHART = {
    "helm.sh/resource-policy": "Helm would delete the settings that old pods start with while an upgrade runs",
}
OBJECTS_OF_KUSTOMIZE = {
    ("Namespace", "fsr"): "Helm's user names the namespace: `helm install -n NAME --create-namespace`"
}
NAMES = {
    "chart": "begin with the release's name, for several releases in a namespace",
    "kustomize": "are fixed; those that other software lists in one namespace begin with fsr-",
}


def merged(values: dict[str, Any], *others: dict[str, Any]) -> dict[str, Any]:
    """Values with others over them, as Helm merges several files."""
    result = deepcopy(values)
    for other in others:
        for name, value in other.items():
            nested = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if nested else deepcopy(value)
    return result


def texts(values=None, *, chart=CHART, release=RELEASE, namespace="fsr", **more) -> dict[str, str]:
    """Text of each rendered template by its name, NOTES.txt among them."""
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(values or {}, name=release, namespace=namespace, **more)
    return {path.removeprefix("fsr/templates/"): text for path, text in rendered.items()}


def rendered(values=None, **more) -> list[dict[str, Any]]:
    """Every manifest of the chart."""
    files = [text for name, text in texts(values, **more).items() if name != "NOTES.txt"]
    return [one for text in files for one in parsed(text)]


def comparable(manifests: list[dict[str, Any]], names: dict[str, str]) -> dict[tuple[str, str], Any]:
    """Manifests by kind and name, without what may differ. `names`: patterns of names, and what to write instead."""

    def same(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            if key == "serveConfigV2":
                return yaml.safe_load(value)
            for pattern, name in names.items():
                value = re.sub(pattern, name, value)
            return value
        if isinstance(value, list):
            # The order of variables, volumes, mounts and ports has no meaning.
            order = {"env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "name"}.get(key)
            values = [same(one) for one in value]
            return sorted(values, key=lambda one: str(one.get(order))) if order else values
        if isinstance(value, dict):
            left_out = LABELS_OF_THE_CHART | ANNOTATIONS_OF_THE_CHART
            kept = {name: same(one, name) for name, one in value.items() if name not in left_out}
            return {name: one for name, one in kept.items() if one or name not in ("matchLabels", "annotations")}
        return value

    objects = [same(one) for one in manifests if (one["kind"], one["metadata"]["name"]) not in OBJECTS_OF_KUSTOMIZE]
    result = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(result) == len(objects)
    return result


def of_chart(manifests):
    return comparable(manifests, {rf"\b{RELEASE}-model-\w+": "model", rf"\b{RELEASE}-": "", rf"\b{RELEASE}\b": "fsr"})


def of_kustomize(manifests):
    return comparable(manifests, {r"\bfsr-model-\w+": "model", r"\bfsr-dashboards\b": "dashboards"})
