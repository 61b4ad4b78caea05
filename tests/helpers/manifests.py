"""The manifests that `kubectl kustomize` builds from the overlays, and their parts.

Most functions take `deploy`, the folder to build from, if it is not the repository's own.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.34"
OVERLAYS = sorted(path.name for path in (ROOT / "deploy/k8s/overlays").iterdir())
SETTINGS = {"gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings}


def parsed(text):
    """Every manifest of a text. The dashboards are long, so libyaml parses it."""
    return [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]


@cache
def built(overlay, deploy=ROOT / "deploy"):
    """Every manifest of an overlay."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "kustomize", deploy / "k8s/overlays" / overlay]
    return parsed(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def add_components(deploy, overlay, *names):
    """Adds components to an overlay of a copy of deploy/."""
    file = deploy / "k8s/overlays" / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kustomization["components"] = kustomization.get("components", []) + [f"../../components/{name}" for name in names]
    file.write_text(yaml.safe_dump(kustomization))


def of(overlay, *kinds, **folder):
    """The manifests of these kinds."""
    return [one for one in built(overlay, **folder) if one["kind"] in kinds]


def templates(overlay, **folder):
    """Pod templates by the name of their owner, with those of Ray's head and workers."""
    owners = of(overlay, "Deployment", "StatefulSet", **folder)
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in owners}
    for one in of(overlay, "RayService", **folder):
        cluster = one["spec"]["rayClusterConfig"]
        pods["ray-head"] = cluster["headGroupSpec"]["template"]
        pods |= {f"ray-{group['groupName']}": group["template"] for group in cluster["workerGroupSpecs"]}
    return pods


def our_templates(overlay, **folder):
    """Those of the pods that run a service of ours; the others run what such a service needs."""
    pods = templates(overlay, **folder).items()
    return {owner: pod for owner, pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] in SETTINGS}


def containers(overlay, **folder):
    """(owner, container) of every container of our services."""
    pods = our_templates(overlay, **folder).items()
    return [(owner, one) for owner, pod in pods for one in pod["spec"]["containers"]]


def matching(overlay, selector):
    """Pod templates that a selector matches. Labels that KubeRay sets itself are taken as present."""
    labels = {k: v for k, v in selector.get("matchLabels", {}).items() if not k.startswith("ray.io/")}
    ins = {e["key"]: e["values"] for e in selector.get("matchExpressions", [])}
    return {
        owner: pod
        for owner, pod in templates(overlay).items()
        if labels.items() <= pod["metadata"]["labels"].items()
        and all(pod["metadata"]["labels"].get(key) in values for key, values in ins.items())
    }


def port_names(pods):
    """Name -> number of each pod's ports."""
    return [{p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]} for pod in pods]


def announced(overlay):
    """The served name of the model, which encoder and decoders announce."""
    data = next(one["data"] for one in of(overlay, "ConfigMap") if one["metadata"]["name"].startswith("fsr-model-"))
    assert data["FSR_ENCODER_SERVED_NAME"] == data["FSR_DECODER_SERVED_NAME"]
    return data["FSR_DECODER_SERVED_NAME"]


def options(overlay, service):
    """The settings that a service's pods get from their environment."""
    data = next(one["data"] for one in of(overlay, "ConfigMap") if one["metadata"]["name"].startswith("fsr-model-"))
    prefix = f"FSR_{service.upper()}_"
    values = {name.removeprefix(prefix).lower(): value for name, value in data.items() if name.startswith(prefix)}
    return SETTINGS[service](**values)


def replicas(overlay, name):
    """Smallest and largest number of replicas of a Deployment."""
    for one in of(overlay, "ScaledObject"):
        if one["spec"]["scaleTargetRef"]["name"] == name:
            return one["spec"]["minReplicaCount"], one["spec"]["maxReplicaCount"]
    count = next(one["spec"]["replicas"] for one in of(overlay, "Deployment") if one["metadata"]["name"] == name)
    return count, count


def triggers(overlay, name):
    """Threshold of each named trigger of a scaler."""
    scalers = [one["spec"]["triggers"] for one in of(overlay, "ScaledObject") if one["metadata"]["name"] == name]
    return {one["name"]: float(one["metadata"]["threshold"]) for scaler in scalers for one in scaler if "name" in one}
