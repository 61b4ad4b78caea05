"""The manifests against the schemas of Kubernetes and the fields of others' custom resources."""

import ast

import kubernetes_validate
import pytest
from pydantic import ValidationError

from helpers.crds import SPECS
from helpers.manifests import KUBERNETES, OVERLAYS, built, of, templates


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas(overlay):
    for one in built(overlay):
        if one["kind"] in SPECS:
            version, spec = SPECS[one["kind"]]
            assert set(one) == {"apiVersion", "kind", "metadata", "spec"} and one["apiVersion"] == version
            spec.model_validate(one["spec"])
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    for owner, pod in templates(overlay).items():
        whole = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": owner, **pod["metadata"]}}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    for one in of(overlay, "ScaledObject"):  # KEDA makes a HorizontalPodAutoscaler from it
        spec = {"scaleTargetRef": {"kind": "Deployment", **one["spec"]["scaleTargetRef"]}, "maxReplicas": 1}
        config = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]
        spec |= {"behavior": config["behavior"]}
        scaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": config["name"]},
        }
        kubernetes_validate.validate(scaler | {"spec": spec}, KUBERNETES, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in built(overlay)]
    assert len(set(names)) == len(names)
    assert {one["metadata"].get("namespace", "fsr") for one in built(overlay)} == {"fsr"}


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("RayService", "minReplicas", "minReplica"),
        ("RayService", "excludeHeadPodFromServeSvc", "excludeHeadPodFromServeService"),
        ("PodMonitor", "relabelings", "relabeling"),
        ("PrometheusRule", "'for'", "'For'"),
        ("ScaledObject", "threshold", "treshold"),
        ("ScaledObject", "cooldownPeriod", "coolDownPeriod"),
    ],
)
def test_misspelt_field_of_a_custom_resource_is_refused(kind, right, wrong):
    spec = str(of("cluster", kind)[0]["spec"])
    assert right in spec
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SPECS[kind][1].model_validate(ast.literal_eval(spec.replace(right, wrong)))
