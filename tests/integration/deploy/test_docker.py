"""The images and compose.yaml without a Docker engine: their commands run, and what they name exists."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from fsr.client import Client
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.settings import GatewaySettings
from helpers.images import ROOT, constraints, environment, install, install_line, instructions, one, started, unpinned

SETTINGS = {"gateway": GatewaySettings, "encoder": EncoderSettings, "decoder": DecoderSettings}
# image -> its service, and the extras of pyproject.toml that it installs; vLLM brings what `otel` needs
IMAGES = {
    "gateway": ("gateway", "gateway,otel"),
    "encoder": ("encoder", "encoder,otel"),
    "decoder": ("decoder", "decoder,otel"),
    "decoder-vllm": ("decoder", "vllm"),
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


def test_hadolint():
    binary = Path(sys.executable).with_name("hadolint")
    files = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
    assert {path.stem for path in files} == set(IMAGES)
    command = [binary, "--config", ROOT / "deploy/docker/hadolint.yaml", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_image(image):
    service, extras = IMAGES[image]
    words = [word for word, _ in instructions(image)]
    assert words.count("FROM") == 2
    pins = [rest for word, rest in instructions(image) if word == "ARG" and rest.startswith("PYTHON")]
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", pins[0])
    assert f"'.[{extras}]'" in install_line(image) and set(extras.split(",")) <= set(EXTRAS)
    assert ("--constraint constraints.txt" in install_line(image)) == (image in SETTINGS), "vLLM pins its own versions"
    assert int(one(image, "USER")) > 0
    fields, env = SETTINGS[service].model_fields, environment(image)
    metrics = int(env.get("FSR_ENCODER_METRICS_PORT", fields["metrics_port"].default or 0))
    health = int(env.get("FSR_GATEWAY_HEALTH_PORT", fields["port"].default))
    assert (health != fields["port"].default) == (service == "gateway"), (
        "a service that may use TLS has a separate port for health"
    )
    exposed = {fields["port"].default, health, metrics} | ({20052} if service == "gateway" else set())  # and HTTP
    assert {int(port) for port in one(image, "EXPOSE").split()} == exposed
    for name, value in env.items():
        if name.startswith("FSR_"):
            SETTINGS[service](**{name.removeprefix(f"FSR_{service.upper()}_").lower(): value})
    assert env.get(f"FSR_{service.upper()}_HOST", fields["host"].default) == "0.0.0.0"
    probe = json.loads(one(image, "HEALTHCHECK").split("CMD ", 1)[1])
    assert probe[-1] == f"127.0.0.1:{health}"
    assert json.loads(one(image, "ENTRYPOINT")) == ["python", "-m", f"fsr.{service}"]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in instructions(image):
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() and f"!{source}" in allowed for source in rest.split()[:-1])


def normalised(name):
    return name.lower().replace("_", "-").replace(".", "-")


def closure(requirements):
    """Names of the distributions that the requirements install, with those of their extras, as far as they are here."""
    seen, todo = set(), [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        name = normalised(requirement.name)
        if name == "fsr-gateway":
            todo += [Requirement(text) for extra in requirement.extras for text in EXTRAS[extra]]
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            parsed = [Requirement(text) for text in needs]
            todo += [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def test_constraints_pin_every_requirement_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(text for extra in (*SETTINGS, "otel") for text in EXTRAS[extra])]
    requirements = [Requirement(text) for text in [*direct, *EXTRAS["service"], *EXTRAS["core"]]]
    pinned = constraints()
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and Version(version).local is None for name, version in pinned.items())
    for requirement in requirements:
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[normalised(requirement.name)]), requirement
    assert Requirement(f"torch=={pinned['torch']}").specifier.contains(f"{pinned['torch']}+cpu"), (
        "a constraint admits every build"
    )
    assert "nvidia-cublas" in pinned, "torch's CUDA libraries are missing; run make constraints where pip finds those"


START = """
import runpy, sys
for command in {commands}:
    sys.argv = [*command, "--help"]
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, end
{more}
print(*sys.modules)
"""


@pytest.mark.parametrize("service", SETTINGS)
def test_entry_point_and_probe_need_only_the_extra(service):
    """Both print their --help. Every package that our modules import for it comes with the install line's extra."""
    extra = re.search(r"'\.\[(\w+),otel\]'", install_line(service))[1]
    assert extra == service
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = closure([*base, *EXTRAS[extra], *EXTRAS["otel"]])
    entry, probe = json.loads(one(service, "ENTRYPOINT")), json.loads(one(service, "HEALTHCHECK").split("CMD ", 1)[1])
    assert entry[:2] == probe[:2] == ["python", "-m"]
    more = "import fsr.encoder.app" if service == "encoder" else ""
    code = START.format(commands=[entry[2:], probe[2:]], more=more)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.lower().count("usage:") == 2, done.stderr
    owners = importlib.metadata.packages_distributions()
    tops = {module.partition(".")[0] for module in done.stdout.splitlines()[-1].split()}
    # Some libraries import whatever is installed, so only what our own modules import counts.
    used = [{normalised(name) for name in owners.get(top, [])} - {"fsr-gateway"} for top in tops & imports(service)]
    used = [names for names in used if names]
    assert len(used) >= 5 and all(
        names & installed for names in used
    )  # a namespace package such as google belongs to many distributions
    assert service != "gateway" or not installed & {"torch", "ray", "transformers"}


def imports(service):
    """Top-level modules that a service's own files import."""
    folders = [ROOT / "services/fsr" / service, ROOT / "services/fsr/common"]
    folders += [ROOT / "fsr_core"] if service != "gateway" else []
    files = [path for folder in folders for path in folder.rglob("*.py") if "tiny" not in path.parts]
    text = "\n".join(path.read_text() for path in files)
    return set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))


@pytest.mark.cluster
def test_gateway_image_answers(system, free_ports, png, tmp_path):
    """The gateway's install line and entry point run in an environment with nothing else installed."""
    clean, site = install("gateway", tmp_path)
    packages = {path.name for path in site.iterdir()}
    assert {"fsr", "grpc"} <= packages and not packages & {"torch", "ray", "fsr_core", "transformers"}
    assert not unpinned(site)
    port = free_ports(3)
    replicas = {"FSR_GATEWAY_ENCODERS": system["encoder"], "FSR_GATEWAY_DECODERS": system["decoder-0"]}
    with started("gateway", clean | replicas, port, tmp_path), Client(f"127.0.0.1:{port}") as client:
        usage = client.ask(png(1), "Is there a red star?", budget=16).usage
        assert (usage.visual_tokens_in, usage.visual_tokens_kept) == (144, 16)


def test_compose_with_vllm_builds_the_image_of_vllm():
    overlay = yaml.safe_load((ROOT / "deploy/compose.vllm.yaml").read_text())["services"]
    assert set(overlay) == {"decoder"}
    assert overlay["decoder"]["build"] == {"dockerfile": "deploy/docker/decoder-vllm.Dockerfile"}
    assert overlay["decoder"]["image"] == COMPOSE["services"]["decoder"]["image"].replace("decoder", "decoder-vllm")
    assert environment("decoder-vllm")["FSR_DECODER_ENGINE"] == "vllm"


def test_compose_with_traces_sends_those_of_every_service_to_jaeger():
    overlay = yaml.safe_load((ROOT / "deploy/compose.traces.yaml").read_text())["services"]
    assert set(overlay) == {*SETTINGS, "jaeger"}
    for service in SETTINGS:
        assert overlay[service]["environment"] == {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317"}
        assert COMPOSE["services"][service]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] is None
    grafana = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    (link,) = grafana["datasources"][0]["jsonData"]["exemplarTraceIdDestinations"]
    port = overlay["jaeger"]["ports"][0].split(":")[1]
    assert link["name"] == "trace_id" and f"localhost:{port}/trace/" in link["url"]


def test_compose_passes_on_the_variables_of_the_page():
    page = (
        (ROOT / "docs/deploy.md").read_text().partition("## One machine, Docker")[2].partition("## One machine, no")[0]
    )
    documented = {
        name for row in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for name in re.findall(r"(\w+)=", row)
    }
    assert {"FSR_MODEL", "FSR_ENCODER_CLIP"} <= documented
    gpu = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())
    accepted = {name for service in COMPOSE["services"].values() for name, v in environment_of(service) if v is None}
    accepted |= set(re.findall(r"\$\{(\w+):-", str(COMPOSE)))
    assert documented <= accepted
    for service in gpu["services"].values():  # the caller's value wins over the GPU file's
        assert all(v.startswith(f"${{{name}:-") for name, v in environment_of(service) if name in documented)


def environment_of(service):
    return service.get("environment", {}).items()


def test_compose_with_a_gpu_lets_decoders_be_the_limit():
    overlay = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"]
    max_running = int(overlay["decoder"]["environment"]["FSR_DECODER_MAX_RUNNING"])
    assert max_running > DecoderSettings.model_fields["max_running"].default
    accepted = max_running + DecoderSettings.model_fields["max_waiting"].default
    max_requests = int(overlay["gateway"]["environment"]["FSR_GATEWAY_MAX_REQUESTS"])
    assert max_requests > overlay["decoder"]["deploy"]["replicas"] * accepted


def test_compose():
    services = COMPOSE["services"]
    for name, service in services.items():
        assert not service["image"].endswith(":latest") and ":" in service["image"]
        if "build" in service:
            arguments = [rest for word, rest in instructions(name) if word == "ARG"]
            assert all(f"{argument}=" in arguments for argument in service["build"].get("args", {}))
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        for pair in service.get("environment", {}):
            if pair.startswith("FSR_"):
                _, kind, option = pair.lower().split("_", 2)
                assert option in SETTINGS[kind].model_fields
        for volume in service.get("volumes", []):
            folder, target = volume.split(":")[:2]
            if folder.startswith("./"):
                assert (ROOT / "deploy" / folder).exists(), name
                assert target.startswith("/")
    exposed = {name: {int(port) for port in one(name, "EXPOSE").split()} for name in SETTINGS}
    for option in ("FSR_GATEWAY_ENCODERS", "FSR_GATEWAY_DECODERS"):
        host, _, port = services["gateway"]["environment"][option].removeprefix("dns:///").rpartition(":")
        assert int(port) in exposed[host]
    http = services["gateway"]["environment"]["FSR_GATEWAY_HTTP_PORT"]
    assert http in exposed["gateway"] and f"{http}:{http}" in services["gateway"]["ports"]
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    for job in jobs:
        targets = job["dns_sd_configs"][0]
        assert targets["names"] == [job["job_name"]] and targets["port"] in exposed[job["job_name"]]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/fsr.yaml").read_text())["providers"][0]
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    host = re.fullmatch(r"http://(\w+):(\d+)", source["datasources"][0]["url"])
    assert f"{host[2]}:{host[2]}" in services[host[1]]["ports"]
    overlay = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"]
    assert set(overlay) <= set(services)
    for service in overlay.values():
        assert all(
            name.lower().split("_", 2)[2] in SETTINGS[name.lower().split("_")[1]].model_fields
            for name in service["environment"]
        )
