"""The switches of mTLS between the services: compose.tls.yaml with the script for certificates, and the components."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import kubernetes_validate
import pytest
import yaml

from fsr.common.health import check
from fsr.common.network.addresses import split_host_port
from fsr.common.network.certificates import channel_credentials, server_credentials
from fsr.encoder.serving.serve_ports import CALLBACK
from helpers.crds import SPECS
from helpers.manifests import KUBERNETES, OVERLAYS, ROOT, SETTINGS, add_components, built, containers, of, templates

MOUNTED = "/etc/fsr/inner-tls"
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
ADDED = yaml.safe_load((ROOT / "deploy/compose.tls.yaml").read_text())["services"]


def script(folder, **environment):
    command = [ROOT / "deploy/certificates.sh", folder]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"} | environment)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates") / "mine"
    assert script(folder).returncode == 0
    return folder


def settings_in(environment, service, folder=None):
    """A service's settings from what its container gets; with `folder`, the files are those of the script."""
    prefix = f"FSR_{service.upper()}_"
    values = {
        name.removeprefix(prefix).lower(): value for name, value in environment.items() if name.startswith(prefix)
    }
    return SETTINGS[service](
        **{name: value.replace(MOUNTED, str(folder)) if folder else value for name, value in values.items()}
    )


@contextmanager
def serving(files):
    """The port of a server with this certificate, and without services."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def host_of(address):
    return split_host_port(address.removeprefix("dns:///"))[0]


def test_certificates_of_the_script_are_those_that_compose_asks_for(certificates):
    """Services take them, and the gateway's connections find the names that they expect."""
    assert (certificates.stat().st_mode & 0o777, (certificates / "ca.key").stat().st_mode & 0o777) == (0o700, 0o600)
    found = {}
    for service, added in ADDED.items():
        (volume,) = added["volumes"]
        assert volume == f"${{CERTIFICATES:-./certificates}}/{service}:{MOUNTED}:ro"
        found[service] = settings_in(added["environment"], service, certificates / service)
    credentials = channel_credentials(found["gateway"].replica_certificate().pems)
    for service, option in (("encoder", "FSR_GATEWAY_ENCODERS"), ("decoder", "FSR_GATEWAY_DECODERS")):
        with serving(found[service].certificate()) as port:
            host = host_of(COMPOSE["gateway"]["environment"][option])
            answer = check(f"127.0.0.1:{port}", credentials=credentials, server_name=host, timeout=60)
            assert "UNIMPLEMENTED" in answer  # a server without services has answered


def test_health_checks_of_compose_need_no_caller(certificates):
    """The encoder's goes through mTLS with the encoder's own certificate; the decoder has a port for it."""
    command = ADDED["encoder"]["healthcheck"]["test"]
    assert command[:4] == ["CMD", "python", "-m", "fsr.common.health"] and command[-1] == "127.0.0.1:20051"
    files = settings_in(ADDED["encoder"]["environment"], "encoder", certificates / "encoder").certificate()
    with serving(files) as port:
        arguments = [word.replace(MOUNTED, str(certificates / "encoder")) for word in command[2:-1]]
        done = subprocess.run(
            [sys.executable, *arguments, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=300
        )
    assert done.stderr.startswith(f"error: 127.0.0.1:{port}: UNIMPLEMENTED")  # a server without services has answered
    decoder = ADDED["decoder"]
    health = settings_in(decoder["environment"], "decoder", certificates / "decoder").health_port
    assert decoder["healthcheck"]["test"][-1] == f"127.0.0.1:{health}"


def test_script_when_it_runs_again_renews_and_keeps_the_authority(certificates):
    files = settings_in(ADDED["gateway"]["environment"], "gateway", certificates / "gateway").replica_certificate()
    before = files.pems
    assert script(certificates, DAYS="1").returncode == 0
    assert files.refresh() and files.pems.ca == before.ca and files.pems.key != before.key


def test_script_when_the_folder_is_for_other_things_leaves_it(tmp_path):
    mode = tmp_path.stat().st_mode
    done = script(tmp_path)
    assert done.returncode == 1 and "File exists" in done.stderr
    assert tmp_path.stat().st_mode == mode and not list(tmp_path.iterdir())


@pytest.fixture(scope="module", params=OVERLAYS)
def locked(request, tmp_path_factory):
    """An overlay with both components, and the folder to build it from."""
    deploy = tmp_path_factory.mktemp(request.param) / "deploy"
    for part in ("k8s", "grafana"):
        shutil.copytree(ROOT / "deploy" / part, deploy / part)
    add_components(deploy, request.param, "inner-tls", "inner-tls-cert-manager")
    return request.param, deploy


def variables(overlay, deploy, container):
    """The whole environment of a container."""
    maps = {one["metadata"]["name"]: one["data"] for one in of(overlay, "ConfigMap", deploy=deploy)}
    own = {one["name"]: one["value"] for one in container.get("env", [])}
    return {**maps[container["envFrom"][0]["configMapRef"]["name"]], **own}


def test_component_gives_each_service_its_secret_and_options(locked, certificates):
    overlay, deploy = locked
    found = {}
    for owner, container in containers(overlay, deploy=deploy):
        service = "encoder" if owner.startswith("ray-") else owner
        volumes = {one["name"]: one for one in templates(overlay, deploy=deploy)[owner]["spec"]["volumes"]}
        mounts = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
        assert mounts[MOUNTED]["secret"] == {"secretName": f"{service}-inner-tls"}
        environment = variables(overlay, deploy, container)
        found[service] = settings_in(environment, service, certificates / service)
        assert service != "encoder" or CALLBACK.items() <= environment.items()
    assert found["gateway"].replica_certificate() and found["decoder"].certificate() and found["encoder"].certificate()
    assert set(found) == set(SETTINGS)


def test_component_asks_for_health_without_a_certificate(locked):
    overlay, deploy = locked
    container = dict(containers(overlay, deploy=deploy))["decoder"]
    health = int(variables(overlay, deploy, container)["FSR_DECODER_HEALTH_PORT"])
    assert {container[probe]["grpc"]["port"] for probe in container if probe.endswith("Probe")} == {health}
    assert health in [port["containerPort"] for port in container["ports"]]
    for one in of(overlay, "Service", deploy=deploy):
        encrypted = one["metadata"]["name"] in ("encoder", "decoder")
        assert not encrypted or "appProtocol" not in one["spec"]["ports"][0]


def test_certificates_of_cert_manager_are_those_that_the_pods_mount(locked):
    overlay, deploy = locked
    issued = {one["metadata"]["name"]: one["spec"] for one in of(overlay, "Certificate", deploy=deploy)}
    issuers = {one["metadata"]["name"]: one["spec"] for one in of(overlay, "Issuer", deploy=deploy)}
    gateway = variables(overlay, deploy, dict(containers(overlay, deploy=deploy))["gateway"])
    authority = issued.pop("inner-tls-authority")
    assert authority["isCA"] and issuers[authority["issuerRef"]["name"]] == {"selfSigned": {}}
    assert {spec["secretName"] for spec in issued.values()} == {f"{service}-inner-tls" for service in SETTINGS}
    for service in SETTINGS:
        spec = issued[f"{service}-inner-tls"]
        assert issuers[spec["issuerRef"]["name"]] == {"ca": {"secretName": authority["secretName"]}}
        assert spec["usages"] == (["client auth"] if service == "gateway" else ["server auth"])
        if service != "gateway":
            assert spec["dnsNames"] == [host_of(gateway[f"FSR_GATEWAY_{service.upper()}S"])]


def test_component_matches_the_schemas(locked):
    overlay, deploy = locked
    for one in built(overlay, deploy=deploy):
        if one["kind"] in SPECS:
            version, spec = SPECS[one["kind"]]
            assert one["apiVersion"] == version
            spec.model_validate(one["spec"])
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    for owner, pod in templates(overlay, deploy=deploy).items():
        whole = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": owner, **pod["metadata"]}}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
