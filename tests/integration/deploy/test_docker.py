"""The images and compose.yaml without a Docker engine: their commands run, and what they name exists."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.docker import digests
from fsr.client import Client
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings
from helpers.images import ROOT, environment, install, instructions, one, pinned, stages, started, unpinned

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
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", pins[0])
    files = re.findall(r"--requirement requirements/(\S+)\.txt", str(stages(image)[0]))
    torch = ["torch"] if "TORCH_INDEX=" in [rest for word, rest in stages(image)[0] if word == "ARG"] else []
    assert files == [image, *torch, "build"] and set(extras.split(",")) <= set(EXTRAS)
    assert bool(torch) == (image in ("encoder", "decoder")), "vLLM pins its own torch"
    commands = [line for word, rest in stages(image)[0] if word == "RUN" for line in re.split("&&|;", rest)]
    for command in commands:
        if "pip install" in command:  # a wheel whose hash is known, our own, or torch from an index that the user names
            assert (
                "--only-binary :all: --require-hashes" in command or "--no-index" in command or "--index-url" in command
            )
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


def direct(*extras):
    """The requirements of the project with extras, and with the extras that these name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [text for extra in extras for text in EXTRAS[extra]]
    found = [Requirement(text) for text in [*project["dependencies"], *named]]
    nested = [more for one in found if one.name == project["name"] for name in one.extras for more in direct(name)]
    return [one for one in found if one.name != project["name"]] + nested


@pytest.mark.parametrize("image", IMAGES)
def test_image_pins_every_package_within_its_range(image):
    """What pyproject.toml names, and what that needs as far as it is installed here."""
    needed = direct(*IMAGES[image][1].split(","))
    files = [image, "torch"] if image in ("encoder", "decoder") else [image]
    versions = dict(pinned(*files))
    for requirement in needed:
        assert requirement.specifier.contains(versions[normalised(requirement.name)]), requirement
    if image in SETTINGS:
        assert closure(map(str, needed)) <= set(versions)
        assert "torch" not in dict(pinned(image)), "it is in torch.txt, which images for CPUs leave out"
    if "torch" in versions:
        assert "nvidia-cublas" in versions, "torch's CUDA libraries are missing"


def test_every_pin_has_hashes_and_no_local_label():
    for path in (ROOT / "deploy/docker/requirements").glob("*.txt"):
        blocks = re.findall(r"^[^#\s].*\n(?: .*\n)*", path.read_text(), re.MULTILINE)
        assert blocks and all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
        names = [block.partition("==")[0] for block in blocks]
        assert path.stem == "decoder-vllm" or len(set(names)) == len(names), "one version for all Pythons"
        for name, version in pinned(path.stem):
            assert Version(version).local is None, f"{name}: the hash is that of one build"


def test_images_agree_on_versions():
    """Services that talk to each other are tested together, in these versions."""
    files = ["gateway", "encoder", "decoder", "torch"]
    assert len(set(pinned(*files))) == len(dict(pinned(*files)))


def test_every_image_of_others_has_a_digest():
    texts = {path.name: path.read_text() for path in digests.FILES}
    names = {match["name"] for text in texts.values() for match in digests.PINNED.finditer(text)}
    assert names == {"PYTHON", "prom/prometheus", "grafana/grafana", "jaegertracing/jaeger", "redis"}
    for service in COMPOSE["services"].values():
        assert "build" in service or digests.PINNED.fullmatch(service["image"])


@pytest.fixture
def registry():
    """A registry that gives a token to whoever asks, as Docker Hub does, and knows one tag. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            assert self.path == "/token?service=test&scope=repository%3Ame%2Fthing%3Apull"
            body = b'{"token": "secret"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):
            known = self.path == "/v2/me/thing/manifests/v1.0"
            allowed = self.headers["Authorization"] == "Bearer secret"
            self.send_response(401 if not allowed else 200 if known else 404)
            host = self.headers["Host"]
            self.send_header(
                "WWW-Authenticate",
                f'Bearer realm="http://{host}/token",service="test",scope="repository:me/thing:pull"',
            )
            assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
            self.send_header("Docker-Content-Digest", f"sha256:{'a' * 64}")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_digests_are_those_of_the_registry(registry, tmp_path):
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    old = f"image: {registry}/me/thing:v1.0@sha256:{'0' * 64}\n"
    for path in (file, other):
        path.write_text(old)
    digests.renew([file, other])
    assert file.read_text() == other.read_text() == old.replace("0" * 64, "a" * 64)
    other.write_text(old.replace("v1.0", "v2"))
    file.write_text(old)
    with pytest.raises(OSError, match="404"):
        digests.renew([file, other])
    assert file.read_text() == old


def test_names_without_a_registry_are_those_of_docker_hub():
    urls = [
        digests.manifest_url(name, "1") for name in ("python", "prom/prometheus", "ghcr.io/a/b", "localhost:5000/a")
    ]
    hub = "https://registry-1.docker.io/v2"
    assert urls[:2] == [f"{hub}/library/python/manifests/1", f"{hub}/prom/prometheus/manifests/1"]
    assert urls[2:] == ["https://ghcr.io/v2/a/b/manifests/1", "http://localhost:5000/v2/a/manifests/1"]


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
    """Both print their --help. Every package that our modules import for it is one that the image installs."""
    installed = {name for name, _ in pinned(service, *(["torch"] if service != "gateway" else []))}
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
    assert not unpinned(site, "gateway")
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


def published(service):
    """The ports that this machine has for a service, by the port of the container."""
    address = re.compile(r"(?:127\.0\.0\.1|\$\{PUBLISH:-127\.0\.0\.1\}):(\d+):(\d+)")
    found = [address.fullmatch(port) for port in COMPOSE["services"][service].get("ports", [])]
    assert all(found), "only this machine reaches a port, unless its user says otherwise"
    return {int(match[2]): int(match[1]) for match in found}


def test_compose_publishes_what_its_comment_says():
    comment = (ROOT / "deploy/compose.yaml").read_text().partition("name:")[0]
    named = {int(port) for port in re.findall(r"localhost:(\d+)", comment)}
    assert named == {port for service in COMPOSE["services"] for port in published(service).values()}
    opened = {name for name, one in COMPOSE["services"].items() if "PUBLISH" in str(one.get("ports"))}
    assert opened == {"gateway"}


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_compose_locks_every_service(service):
    one = COMPOSE["services"][service]
    assert one["read_only"] and one["cap_drop"] == ["ALL"] and one["security_opt"] == ["no-new-privileges:true"]
    assert one["pids_limit"] > 0 and re.fullmatch(r"\d+g|\$\{\w+:-\d+g\}", one["mem_limit"])
    writable = [volume.split(":")[0] for volume in one.get("volumes", []) if not volume.endswith(":ro")]
    assert set(writable) <= set(COMPOSE["volumes"]), "what a service writes is in a named volume"


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
    assert http in exposed["gateway"] and http in published("gateway")
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    for job in jobs:
        targets = job["dns_sd_configs"][0]
        assert targets["names"] == [job["job_name"]] and targets["port"] in exposed[job["job_name"]]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/fsr.yaml").read_text())["providers"][0]
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yaml").read_text())
    host = re.fullmatch(r"http://(\w+):(\d+)", source["datasources"][0]["url"])
    assert int(host[2]) in published(host[1])
    overlay = yaml.safe_load((ROOT / "deploy/compose.gpu.yaml").read_text())["services"]
    assert set(overlay) <= set(services)
    for service in overlay.values():
        assert all(
            name.lower().split("_", 2)[2] in SETTINGS[name.lower().split("_")[1]].model_fields
            for name in service["environment"]
        )
