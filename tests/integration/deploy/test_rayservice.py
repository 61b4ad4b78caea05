"""The RayService: its Serve configuration is valid by Ray's own schema, and a local Ray runs it."""

import importlib
import json
import subprocess
import sys

import grpc
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from fsr.common.health import check
from fsr.v1 import encoder_pb2, encoder_pb2_grpc, types_pb2
from helpers.manifests import OVERLAYS, containers, of


def serve_config(overlay):
    return yaml.safe_load(of(overlay, "RayService")[0]["spec"]["serveConfigV2"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_config_matches_the_schema_and_the_cluster(overlay):
    config = serve_config(overlay)
    schema = ServeDeploySchema.model_validate(config)
    assert set(config) <= set(ServeDeploySchema.model_fields)
    application = schema.applications[0]
    assert application.name == importlib.import_module("fsr.encoder.app").APPLICATION
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    for function in schema.grpc_options.grpc_servicer_functions:
        module, _, name = function.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    cluster = of(overlay, "RayService")[0]["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    group = cluster["workerGroupSpecs"][0]
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    assert scaling["max_replicas"] == group["maxReplicas"]
    worker = group["template"]["spec"]["containers"][0]
    actor = config["applications"][0]["deployments"][0]["ray_actor_options"]
    assert actor["num_gpus"] <= worker["resources"]["limits"]["nvidia.com/gpu"]
    assert actor["num_cpus"] <= float(worker["resources"]["requests"]["cpu"])
    for _, container in containers(overlay):
        if container["name"].startswith("ray-"):
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["serve-grpc"] == config["grpc_options"]["port"]
            assert ports["serve"] == config["http_options"]["port"]
    for parameters in (cluster["headGroupSpec"]["rayStartParams"], group["rayStartParams"]):
        assert int(parameters["metrics-export-port"]) == ports["metrics"]


def test_direct_ingress_when_ray_lacks_it_is_refused(monkeypatch):
    application = importlib.import_module("fsr.encoder.app").application
    monkeypatch.setenv("FSR_ENCODER_INGRESS", "direct")
    with pytest.raises(ValueError, match=r"ingress: direct needs a Ray .* RAY_SERVE_ENABLE_DIRECT_INGRESS=1"):
        application({})
    monkeypatch.setenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", "1")
    application({})


DEPLOY = """
import json, sys, time
from fsr.encoder.serving.ray_start import start_ray
from ray import serve
from ray.serve._private import api
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

config = ServeDeploySchema.model_validate(json.load(sys.stdin))
start_ray("local", num_cpus=4, num_gpus=1, log_to_driver=False)
client = api.serve_start(
    http_options=config.http_options.model_dump(),
    proxy_location=config.proxy_location,
    grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
)
client.deploy_apps(config, _blocking=False)
end = time.monotonic() + 500
while time.monotonic() < end:
    state = serve.status().applications["encoder"]
    if state.status not in ("NOT_STARTED", "DEPLOYING"):
        break
    time.sleep(0.2)
deployments = {name: one.status for name, one in state.deployments.items()}
print(json.dumps({"status": state.status, "message": state.message, "deployments": deployments}), flush=True)
time.sleep(600)
"""


@pytest.mark.cluster
def test_serve_config_runs_on_a_local_ray(free_ports, png, monkeypatch):
    """The manifest's configuration with other ports. Ray counts a GPU that the replica, on device cpu, does not use."""
    config, base = serve_config("cluster"), free_ports(3)
    config["http_options"] |= {"port": base, "host": "127.0.0.1"}
    config["grpc_options"]["port"] = base + 1
    monkeypatch.setenv("FSR_ENCODER_DEVICE", "cpu")
    monkeypatch.setenv("FSR_ENCODER_SERVED_NAME", "from-the-environment")
    process = subprocess.Popen([sys.executable, "-c", DEPLOY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdin.write(json.dumps(config))
        process.stdin.close()
        line = next(line for line in process.stdout if line.startswith("{"))
        assert json.loads(line) == {"status": "RUNNING", "message": "", "deployments": {"Encoder": "HEALTHY"}}
        address = f"127.0.0.1:{base + 1}"
        assert check(address, ray_serve=True, timeout=120) is None
        with grpc.insecure_channel(address) as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            description = stub.DescribeEncoder(encoder_pb2.DescribeEncoderRequest(), timeout=120)
            assert description.model.model == "from-the-environment"
            encoded = stub.Encode(
                encoder_pb2.EncodeRequest(
                    images=[types_pb2.Image(data=png(1))],
                    instruction="Is there a red star?",
                    budget=types_pb2.Budget(tokens=16),
                ),
                timeout=120,
            )
        assert len(encoded.images[0].index) == 16
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
