"""What `kubectl kustomize` makes of the overlays, and its parts."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.settings import GatewaySettings

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.34"
OVERLAYS = sorted(path.name for path in (ROOT / "deploy/k8s/overlays").iterdir())
SETTINGS = {"gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings}


@cache
def built(overlay, deploy=ROOT / "deploy"):
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "kustomize", deploy / "k8s/overlays" / overlay]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def of(overlay, *kinds, **place):
    return [one for one in built(overlay, **place) if one["kind"] in kinds]


def templates(overlay, **place):
    """Pod templates by what owns them; those of Ray's head and workers too."""
    found = {one["metadata"]["name"]: one["spec"]["template"] for one in of(overlay, "Deployment", **place)}
    for one in of(overlay, "RayService", **place):
        cluster = one["spec"]["rayClusterConfig"]
        found["ray-head"] = cluster["headGroupSpec"]["template"]
        found |= {f"ray-{group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    return found


def containers(overlay, **place):
    return [(owner, one) for owner, pod in templates(overlay, **place).items() for one in pod["spec"]["containers"]]


def matching(overlay, selector):
    """Pod templates that a selector means. The labels that KubeRay sets by itself count as there."""
    wanted = {k: v for k, v in selector.get("matchLabels", {}).items() if not k.startswith("ray.io/")}
    ins = {e["key"]: e["values"] for e in selector.get("matchExpressions", [])}
    return {
        owner: pod
        for owner, pod in templates(overlay).items()
        if wanted.items() <= pod["metadata"]["labels"].items()
        and all(pod["metadata"]["labels"].get(key) in values for key, values in ins.items())
    }


def port_names(pods):
    return [{p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]} for pod in pods]


def announced(overlay):
    """The name under which encoder and decoders serve the model."""
    data = next(one["data"] for one in of(overlay, "ConfigMap") if one["metadata"]["name"].startswith("fsr-model-"))
    assert data["FSR_ENCODER_SERVED_NAME"] == data["FSR_DECODER_SERVED_NAME"]
    return data["FSR_DECODER_SERVED_NAME"]


def options(overlay, service):
    """The settings that a service's pods get by their environment."""
    data = next(one["data"] for one in of(overlay, "ConfigMap") if one["metadata"]["name"].startswith("fsr-model-"))
    prefix = f"FSR_{service.upper()}_"
    told = {name.removeprefix(prefix).lower(): value for name, value in data.items() if name.startswith(prefix)}
    return SETTINGS[service](**told)


def replicas(overlay, name):
    """Fewest and most of a Deployment."""
    for one in of(overlay, "ScaledObject"):
        if one["spec"]["scaleTargetRef"]["name"] == name:
            return one["spec"]["minReplicaCount"], one["spec"]["maxReplicaCount"]
    wanted = next(one["spec"]["replicas"] for one in of(overlay, "Deployment") if one["metadata"]["name"] == name)
    return wanted, wanted


def triggers(overlay, name):
    """Threshold of each of a scaler's triggers that has one, by the trigger's name."""
    found = [one["spec"]["triggers"] for one in of(overlay, "ScaledObject") if one["metadata"]["name"] == name]
    return {one["name"]: float(one["metadata"]["threshold"]) for some in found for one in some if "name" in one}
