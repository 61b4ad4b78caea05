"""The manifests: every overlay builds, is valid, and what refers to something finds it."""

import importlib
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import grpc
import kubernetes_validate
import pytest
import ray
import yaml
from fsr.v1 import encoder_pb2, encoder_pb2_grpc, types_pb2
from ray.serve.schema import ServeDeploySchema

from deploy.catalogue import series
from deploy.grafana.queries import metrics, selectors
from deploy.k8s.build import TARGET, build
from services.decoder.settings import DecoderSettings
from services.encoder.settings import EncoderSettings
from services.gateway.settings import GatewaySettings
from services.health import check

ROOT = Path(__file__).parents[3]
OVERLAYS = sorted(path.name for path in (ROOT / "deploy/k8s/overlays").iterdir())
KUBERNETES = "1.34"
SETTINGS = {"gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings}
CUSTOM = {"RayService", "ScaledObject", "PodMonitor", "PrometheusRule"}


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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas(overlay):
    for one in built(overlay):
        if one["kind"] in CUSTOM:
            assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    for owner, pod in templates(overlay).items():
        whole = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": owner, **pod["metadata"]}}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in built(overlay)]
    assert len(set(names)) == len(names)
    assert {one["metadata"].get("namespace", "fsr") for one in built(overlay)} == {"fsr"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_and_monitors_and_policies_find_pods_and_ports(overlay):
    for one in of(overlay, "Service"):
        pods = matching(overlay, {"matchLabels": one["spec"]["selector"]})
        assert pods, one["metadata"]["name"]
        for port in one["spec"]["ports"]:
            assert all(ports.get(port["targetPort"]) == port["port"] for ports in port_names(pods.values()))
    for one in of(overlay, "PodMonitor"):
        pods = matching(overlay, one["spec"]["selector"])
        assert pods and one["spec"]["jobLabel"] in next(iter(pods.values()))["metadata"]["labels"]
        for endpoint in one["spec"]["podMetricsEndpoints"]:
            assert all(endpoint["port"] in ports for ports in port_names(pods.values()))
    for one in of(overlay, "NetworkPolicy"):
        pods = matching(overlay, one["spec"]["podSelector"])
        assert pods
        for rule in one["spec"].get("ingress", []):
            assert all(port["port"] in ports for port in rule.get("ports", []) for ports in port_names(pods.values()))
            sources = [source["podSelector"] for source in rule.get("from", []) if "namespaceSelector" not in source]
            assert all(matching(overlay, source) for source in sources)
    for one in of(overlay, "PodDisruptionBudget"):
        assert matching(overlay, one["spec"]["selector"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_reached_from_where_it_must_be(overlay):
    """Under deny-by-default: the gateway reaches both tiers, Prometheus every metrics port."""
    policies = of(overlay, "NetworkPolicy")
    for component, port in (("encoder", "serve-grpc"), ("decoder", "grpc")):
        assert any(
            p["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component") == component
            and any(
                {"port": port} in rule.get("ports", [])
                and {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}} in rule.get("from", [])
                for rule in p["spec"].get("ingress", [])
            )
            for p in policies
        )
    scraped = {owner for one in of(overlay, "PodMonitor") for owner in matching(overlay, one["spec"]["selector"])}
    metrics_policy = next(p for p in policies if p["metadata"]["name"] == "metrics")
    assert scraped == set(matching(overlay, metrics_policy["spec"]["podSelector"])) == set(templates(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_environment_names_are_options_and_addresses_are_services(overlay):
    maps = {one["metadata"]["name"]: one["data"] for one in of(overlay, "ConfigMap")}
    pairs = []
    for _, container in containers(overlay):
        pairs += [(one["name"], one["value"]) for one in container.get("env", [])]
        for source in container.get("envFrom", []):
            pairs += maps[source["configMapRef"]["name"]].items()
    for name, value in pairs:
        if name.startswith("FSR_"):
            _, service, option = name.lower().split("_", 2)
            SETTINGS[service](**{option: value})
    ports = {one["metadata"]["name"]: [p["port"] for p in one["spec"]["ports"]] for one in of(overlay, "Service")}
    addresses = [value for name, value in pairs if name in ("FSR_GATEWAY_ENCODERS", "FSR_GATEWAY_DECODERS")]
    assert len(addresses) == 2
    for address in addresses:
        host, _, port = address.removeprefix("dns:///").rpartition(":")
        assert int(port) in ports[host]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_probes_and_images_are_those_of_the_services(overlay):
    for owner, container in containers(overlay):
        component = templates(overlay)[owner]["metadata"]["labels"]["app.kubernetes.io/component"]
        dockerfile = (ROOT / f"deploy/docker/{component}.Dockerfile").read_text()
        exposed = {
            int(port) for line in dockerfile.splitlines() if line.startswith("EXPOSE") for port in line.split()[1:]
        }
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        grpc = ports.get("grpc", ports.get("serve-grpc"))
        assert exposed == {grpc, ports["metrics"]}
        assert SETTINGS[component].model_fields["port"].default == grpc
        assert container["image"] == f"fsr-{component}:0.1.0"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                handler = container[probe]
                assert handler.get("grpc", {}).get("port", grpc) == grpc
                assert handler.get("tcpSocket", {}).get("port", "grpc") in ports
        if component != "encoder":
            assert container["readinessProbe"]["grpc"]["port"] == grpc
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        wanted, limit = (container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits"))
        assert wanted == limit


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_entry_an_image_moves_every_container_to_another_registry(overlay, tmp_path):
    """Ray's head and workers too, which stand in fields that Kubernetes does not know."""
    deploy = tmp_path / "deploy"
    for part in ("k8s", "grafana"):
        shutil.copytree(ROOT / "deploy" / part, deploy / part)
    file = deploy / "k8s/overlays" / overlay / "kustomization.yaml"
    told = yaml.safe_load(file.read_text())
    for entry in told["images"]:
        entry |= {"newName": f"registry.test/{entry['name']}", "newTag": "9"}
    file.write_text(yaml.safe_dump(told))
    images = [one["image"] for _, one in containers(overlay, deploy=deploy)]
    assert sorted(images) == [f"registry.test/fsr-{name}:9" for name in ("decoder", "encoder", "encoder", "gateway")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_get_the_time_to_drain(overlay):
    for one in of(overlay, "Deployment"):
        pod = one["spec"]["template"]["spec"]
        drain = SETTINGS[one["metadata"]["name"]].model_fields["drain_seconds"].default
        pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > drain + pause


def announced(overlay):
    """The name under which encoder and decoders serve the model."""
    data = next(one["data"] for one in of(overlay, "ConfigMap") if one["metadata"]["name"] == "fsr-model")
    assert data["FSR_ENCODER_SERVED_NAME"] == data["FSR_DECODER_SERVED_NAME"]
    return data["FSR_DECODER_SERVED_NAME"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scalers_have_targets_and_metrics_that_exist(overlay):
    deployments = {one["metadata"]["name"]: one for one in of(overlay, "Deployment")}
    scaled = set()
    for one in of(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        spec = one["spec"]
        scaled.add(spec["scaleTargetRef"]["name"])
        low, high = (
            ("minReplicas", "maxReplicas") if one["kind"].startswith("H") else ("minReplicaCount", "maxReplicaCount")
        )
        assert 1 <= spec[low] < spec[high]
        for trigger in spec.get("triggers", []):
            assert set(trigger) == {"type", "name", "metricType", "metadata"}
            assert float(trigger["metadata"]["threshold"]) > 0
            query = trigger["metadata"]["query"]
            assert metrics(query) <= series()
            # Of this model alone, where one Prometheus watches several.
            assert all(f'namespace="fsr", model="{announced(overlay)}"' in one for one in selectors(query))
    assert scaled <= set(deployments)
    assert all("replicas" not in deployments[name]["spec"] for name in scaled)
    assert scaled == (set() if overlay == "single-gpu" else {"gateway", "decoder"})


def serve_config(overlay):
    return yaml.safe_load(of(overlay, "RayService")[0]["spec"]["serveConfigV2"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_service(overlay):
    config = serve_config(overlay)
    schema = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    application = schema.applications[0]
    assert application.name == importlib.import_module("services.encoder.app").APPLICATION
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    for function in schema.grpc_options.grpc_servicer_functions:
        module, _, name = function.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    cluster = of(overlay, "RayService")[0]["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    group = cluster["workerGroupSpecs"][0]
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    assert scaling["max_replicas"] == (1 if overlay == "single-gpu" else group["maxReplicas"])
    worker = group["template"]["spec"]["containers"][0]
    wanted = config["applications"][0]["deployments"][0]["ray_actor_options"]
    assert wanted["num_gpus"] <= worker["resources"]["limits"]["nvidia.com/gpu"]
    assert wanted["num_cpus"] <= float(worker["resources"]["requests"]["cpu"])
    for _, container in containers(overlay):
        if container["name"].startswith("ray-"):
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["serve-grpc"] == config["grpc_options"]["port"]
            assert ports["serve"] == config["http_options"]["port"]
    for parameters in (cluster["headGroupSpec"]["rayStartParams"], group["rayStartParams"]):
        assert int(parameters["metrics-export-port"]) == ports["metrics"]


def test_prometheus_rule_is_that_of_the_rules():
    assert TARGET.read_text() == build()


def test_dashboards_are_in_the_config_map():
    found = next(one for one in of("cluster", "ConfigMap") if one["metadata"]["name"] == "fsr-dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    folder = ROOT / "deploy/grafana/dashboards"
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in folder.glob("*.json")
    }


DEPLOY = """
import json, sys, time
import ray
from ray import serve
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

config = ServeDeploySchema.model_validate(json.load(sys.stdin))
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
client = api.serve_start(
    http_options=config.http_options.model_dump(),
    proxy_location=config.proxy_location,
    grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
)
client.deploy_apps(config, _blocking=False)
end = time.monotonic() + 240
while time.monotonic() < end:
    told = serve.status().applications["encoder"]
    if told.status not in ("NOT_STARTED", "DEPLOYING"):
        break
    time.sleep(0.2)
deployments = {name: one.status for name, one in told.deployments.items()}
print(json.dumps({"status": told.status, "message": told.message, "deployments": deployments}), flush=True)
time.sleep(600)
"""


def test_serve_config_is_deployed_on_a_local_ray(free_ports, png, monkeypatch):
    """As it is in the manifest but for the ports; Ray is told of a GPU, which the replica, on device cpu, leaves be."""
    config, base = serve_config("cluster"), free_ports(3)
    config["http_options"] |= {"port": base, "host": "127.0.0.1"}
    config["grpc_options"]["port"] = base + 1
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # on a busy machine
    monkeypatch.setenv("FSR_ENCODER_DEVICE", "cpu")
    monkeypatch.setenv("FSR_ENCODER_SERVED_NAME", "from-the-environment")
    process = subprocess.Popen([sys.executable, "-c", DEPLOY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdin.write(json.dumps(config))
        process.stdin.close()
        line = next(line for line in process.stdout if line.startswith("{"))
        assert json.loads(line) == {"status": "RUNNING", "message": "", "deployments": {"Encoder": "HEALTHY"}}
        address = f"127.0.0.1:{base + 1}"
        assert check(address, ray_serve=True, timeout=20) is None
        with grpc.insecure_channel(address) as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            told = stub.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=20)
            assert told.model.model == "from-the-environment"
            encoded = stub.Encode(
                encoder_pb2.EncodeRequest(
                    images=[types_pb2.Image(data=png(1))],
                    instruction="Is there a red star?",
                    budget=types_pb2.Budget(tokens=16),
                ),
                timeout=20,
            )
        assert len(encoded.images[0].index) == 16
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
