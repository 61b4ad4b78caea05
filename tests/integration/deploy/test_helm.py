"""The Helm chart: it gives what kustomize gives, switch by switch, and refuses values that make no sense.

Helm's own library renders it. tests/helpers/chart.py lists what may differ from kustomize, and why.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import helm_python
import kubernetes_validate
import pytest
import yaml

from fsr.encoder.serving.ingress import environment as ray_environment
from fsr.encoder.settings import EncoderSettings
from helpers.chart import CHART, CLUSTER, RELEASE, merged, of_chart, of_kustomize, rendered, texts
from helpers.crds import SPECS
from helpers.manifests import KUBERNETES, ROOT, SETTINGS, add_components, built

DIGEST = f"sha256:{'5' * 64}"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def edit(path, *changes):
    """Replaces texts of a file, each of which must be in it."""
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture
def kustomized(tmp_path):
    """Builds an overlay with components added, after `change(k8s)` on a copy of deploy/k8s."""

    def build(overlay, components=(), change=None):
        for part in ("k8s", "grafana"):
            shutil.copytree(ROOT / "deploy" / part, tmp_path / "deploy" / part)
        if change:
            change(tmp_path / "deploy/k8s")
        add_components(tmp_path / "deploy", overlay, *components)
        return of_kustomize(built(overlay, deploy=tmp_path / "deploy"))

    return build


def other_model(k8s):
    changes = [("HF_HOME=", "FSR_ENCODER_CLIP=/models/clip\nHF_HOME="), ("CANARY_SHARE=0", "CANARY_SHARE=0.25")]
    for old, new in (("MODEL=fsr-tiny", "MODEL=/models/llava"), ("NAME=fsr-tiny", "NAME=llava"), ("=fp16", "=bf16")):
        changes.append((old, new))
    edit(k8s / "base/model.env", *changes)


def other_images(k8s):
    edit(
        k8s / "overlays/cluster/kustomization.yaml",
        ("newName: fsr-gateway, newTag: 0.1.0", f"newName: registry.test/me/fsr-gateway, digest: {DIGEST}"),
        ("newName: fsr-encoder, newTag: 0.1.0", "newName: registry.test/me/fsr-encoder, newTag: '9'"),
        ("newName: fsr-decoder, newTag: 0.1.0", "newName: registry.test/me/fsr-decoder, newTag: '9'"),
    )


CASES = {
    "single-gpu": ({}, "single-gpu", (), None),
    "cluster": (CLUSTER, "cluster", (), None),
    "callers": (
        {"gateway": {"apiKeys": {"secret": "gateway-keys"}, "tls": {"secret": "gateway-tls"}}},
        "single-gpu",
        ("api-keys", "gateway-tls"),
        None,
    ),
    "vllm": ({"decoder": {"engine": "vllm"}}, "single-gpu", ("vllm",), None),
    "model": (
        {
            "model": {"name": "/models/llava", "servedName": "llava", "clip": "/models/clip", "dtype": "bf16"},
            "settings": {"FSR_GATEWAY_CANARY_SHARE": 0.25},
        }
        | CLUSTER,
        "cluster",
        (),
        other_model,
    ),
    "images": (
        merged(CLUSTER, {"images": {"registry": "registry.test/me", "tag": "9", "digests": {"gateway": DIGEST}}}),
        "cluster",
        (),
        other_images,
    ),
    "inner-tls": (
        merged(CLUSTER, {"innerTls": {"enabled": True}}),
        "cluster",
        ("inner-tls", "inner-tls-cert-manager"),
        None,
    ),
    "inner-tls-own-secrets": (
        {"innerTls": {"enabled": True, "certManager": False}},
        "single-gpu",
        ("inner-tls",),
        None,
    ),
    "no-gpu": (
        {"encoder": {"gpus": 0}, "decoder": {"gpus": 0}, "monitoring": {"podMonitors": False, "rules": False}},
        None,
        (),
        None,
    ),
    "own-keys": (
        {"gateway": {"apiKeys": {"file": "keys: []\n"}, "tls": {"secret": "tls", "clientCertificates": True}}},
        None,
        (),
        None,
    ),
    "bare": (
        {"networkPolicies": False, "monitoring": {"podMonitors": False, "rules": False, "dashboards": False}},
        None,
        (),
        None,
    ),
}
COMPARED = [name for name, case in CASES.items() if case[1]]


@pytest.mark.parametrize("case", COMPARED)
def test_chart_gives_what_kustomize_gives(case, kustomized):
    values, overlay, components, change = CASES[case]
    chart, kustomize = of_chart(rendered(values)), kustomized(overlay, components, change)
    assert chart.keys() == kustomize.keys()
    for name, manifest in kustomize.items():
        assert chart[name] == manifest, name


def test_every_component_of_kustomize_is_a_switch_of_the_chart():
    components = {path.name for path in (ROOT / "deploy/k8s/components").iterdir()}
    in_overlays = {"gcs-redis"}  # what values-cluster.yaml switches on, as overlays/cluster does
    assert components == {name for case in CASES.values() for name in case[2]} | in_overlays


@pytest.mark.parametrize("case", CASES)
def test_manifests_match_the_schemas(case):
    for one in rendered(CASES[case][0]):
        if one["kind"] in SPECS:
            version, spec = SPECS[one["kind"]]
            assert one["apiVersion"] == version
            spec.model_validate(one["spec"])
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        if one["kind"] == "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
                pod["metadata"] = {"name": "pod", **pod["metadata"]}
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_complain_about(case):
    report = helm_python.lint(CHART, CASES[case][0], strict=True, namespace="fsr")
    assert not report["errors"]
    assert {one["error"] for one in report["messages"]} == {"icon is recommended"}


def pods(values):
    """Pod template of each tier, and of Ray's head."""
    manifests = {(one["kind"], one["metadata"]["name"]): one.get("spec") for one in rendered(values)}
    cluster = manifests["RayService", f"{RELEASE}-encoder"]["rayClusterConfig"]
    return {
        "gateway": manifests["Deployment", f"{RELEASE}-gateway"]["template"],
        "decoder": manifests["Deployment", f"{RELEASE}-decoder"]["template"],
        "encoder": cluster["workerGroupSpecs"][0]["template"],
        "head": cluster["headGroupSpec"]["template"],
    }


def test_without_gpus_everything_runs_on_cpus():
    values = CASES["no-gpu"][0]
    assert "nvidia.com/gpu" not in yaml.safe_dump(rendered(values))
    data = next(one["data"] for one in rendered(values) if "-model-" in one["metadata"]["name"])
    for tier in ("ENCODER", "DECODER"):
        assert (data[f"FSR_{tier}_DEVICE"], data[f"FSR_{tier}_DTYPE"]) == ("cpu", "fp32")
    (service,) = (one["spec"] for one in rendered(values) if one["kind"] == "RayService")
    actor = yaml.safe_load(service["serveConfigV2"])["applications"][0]["deployments"][0]["ray_actor_options"]
    assert actor == {"num_cpus": 2, "num_gpus": 0}


def test_keys_in_the_values_become_a_secret():
    keys = 'keys:\n  - key: "a\\"b: {{ .x }}"\n'
    values = {"gateway": {"apiKeys": {"file": keys}}}
    (secret,) = (one for one in rendered(values) if one["kind"] == "Secret")
    assert secret["stringData"] == {"keys.yaml": keys}
    spec = pods(values)["gateway"]["spec"]
    assert spec["volumes"] == [{"name": "keys", "secret": {"secretName": secret["metadata"]["name"]}}]
    (container,) = spec["containers"]
    folder = container["volumeMounts"][0]["mountPath"]
    assert {"name": "FSR_GATEWAY_API_KEYS_FILE", "value": f"{folder}/keys.yaml"} in container["env"]
    assert keys not in yaml.safe_dump([one for one in rendered(values) if one["kind"] != "Secret"])


def test_callers_certificates_are_checked_by_the_secrets_authority():
    (container,) = pods(CASES["own-keys"][0])["gateway"]["spec"]["containers"]
    assert {"name": "FSR_GATEWAY_TLS_CLIENT_CA", "value": "/etc/fsr/tls/ca.crt"} in container["env"]


@pytest.mark.parametrize("case", CASES)
def test_variables_are_options_of_the_services(case):
    data = next(one["data"] for one in rendered(CASES[case][0]) if "-model-" in one["metadata"]["name"])
    variables = [*data.items()]
    for pod in pods(CASES[case][0]).values():
        for container in pod["spec"]["containers"]:
            variables += [(one["name"], one["value"]) for one in container.get("env", [])]
    for name, _ in variables:
        if name.startswith("FSR_"):
            _, service, option = name.lower().split("_", 2)
            assert option in SETTINGS[service].model_fields, name


@pytest.mark.parametrize("direct", [True, False])
def test_ingress_of_the_values_reaches_ray_and_the_network_policy(direct):
    manifests = rendered({} if direct else {"encoder": {"directIngress": False}})
    data = next(one["data"] for one in manifests if "-model-" in one["metadata"]["name"])
    (policy,) = (
        one for one in manifests if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == f"{RELEASE}-encoder"
    )
    needs = ray_environment(EncoderSettings())
    assert bool(needs.items() <= data.items()) == direct and data.get("FSR_ENCODER_INGRESS") == (
        None if direct else "proxy"
    )
    assert any("endPort" in port for port in policy["spec"]["ingress"][0]["ports"]) == direct


@pytest.mark.parametrize(("value", "text"), [(2_000_000, "2000000"), (0.25, "0.25"), (True, "true"), ("x", "x")])
def test_settings_reach_the_services_as_they_were_written(value, text):
    data = next(
        one["data"]
        for one in rendered({"settings": {"FSR_GATEWAY_MAX_TEXT_BYTES": value}})
        if "-model-" in one["metadata"]["name"]
    )
    assert data["FSR_GATEWAY_MAX_TEXT_BYTES"] == text


def test_another_setting_restarts_every_pod():
    def names(values):
        return {
            tier: container["envFrom"][0]["configMapRef"]["name"]
            for tier, pod in pods(values).items()
            for container in pod["spec"]["containers"]
        }

    before, after = names({}), names({"settings": {"FSR_GATEWAY_CANARY_SHARE": "0.1"}})
    assert set(before.values()) != set(after.values()) and len(set(after.values())) == 1


def test_issuer_of_the_values_signs_every_certificate():
    values = {"innerTls": {"enabled": True, "issuer": {"name": "company", "kind": "ClusterIssuer"}}}
    manifests = rendered(values)
    certificates = [one["spec"] for one in manifests if one["kind"] == "Certificate"]
    issuer = {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    assert [one["issuerRef"] for one in certificates] == [issuer] * 3
    assert not [one for one in manifests if one["kind"] == "Issuer"]
    assert [one["dnsNames"] for one in certificates] == [
        [f"{RELEASE}-{tier}"] for tier in ("gateway", "encoder", "decoder")
    ]


def test_redis_of_the_values_is_used_instead_of_one_of_the_chart():
    values = {"gcsFaultTolerance": {"enabled": True, "address": "redis.example:6380", "secret": "mine"}}
    manifests = rendered(values)
    assert not [one for one in manifests if "redis" in one["metadata"]["name"]]
    (service,) = (one["spec"] for one in manifests if one["kind"] == "RayService")
    assert service["rayClusterConfig"]["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis.example:6380",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "mine", "key": "password"}}},
    }


def test_two_releases_in_a_namespace_share_nothing():
    one, other = rendered({}, release="one"), rendered({}, release="other")
    names = [{(m["kind"], m["metadata"]["name"]) for m in release} for release in (one, other)]
    assert not names[0] & names[1]
    for manifest in one:
        spec = manifest.get("spec", {})
        selectors = [spec.get("podSelector"), spec.get("selector")]
        selectors += [source.get("podSelector") for rule in spec.get("ingress", []) for source in rule.get("from", [])
                      if "namespaceSelector" not in source]  # fmt: skip
        for selector in filter(None, selectors):
            labels = selector.get("matchLabels", selector)
            assert labels["app.kubernetes.io/instance"] == "one", manifest["metadata"]["name"]


def test_several_replicas_on_a_pod_need_fewer_pods():
    values = {"encoder": {"gpus": 2, "replica": {"gpus": 0.5, "cpus": 1}, "replicas": {"min": 5, "max": 8}}}
    (service,) = (one["spec"] for one in rendered(values) if one["kind"] == "RayService")
    (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (2, 2)
    assert service["rayClusterConfig"]["enableInTreeAutoscaling"]


@pytest.mark.parametrize("tier", ["gateway", "decoder", "encoder", "head"])
def test_fields_of_a_pod_reach_that_pod_alone(tier):
    pod = {"nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "high"}
    values = {"encoder": {"headPod": pod}} if tier == "head" else {tier: {"pod": pod}}
    with_fields = {name for name, one in pods(values).items() if pod.items() <= one["spec"].items()}
    assert with_fields == {tier}
    assert all("nodeSelector" not in one["spec"] for name, one in pods(values).items() if name != tier)


WRONG = {
    "unknown value": ({"gateways": {}}, "additional properties 'gateways' not allowed"),
    "replicas": ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
    "engine": ({"decoder": {"engine": "sglang"}}, "value must be one of 'transformers', 'vllm'"),
    "digest": ({"images": {"digests": {"gateway": "sha256:1"}}}, "/images/digests/gateway"),
    "setting of the chart": ({"settings": {"FSR_GATEWAY_ENCODERS": "a:1"}}, "FSR_GATEWAY_ENCODERS"),
    "certificate of the chart": ({"settings": {"FSR_GATEWAY_REPLICA_TLS_CERT": "/a"}}, "FSR_GATEWAY_REPLICA_TLS_CERT"),
    "lower case setting": ({"settings": {"fsr_gateway_max_requests": 1}}, "fsr_gateway_max_requests"),
    "pod": ({"decoder": {"pod": {"containers": []}}}, "additional properties 'containers' not allowed"),
    "two kinds of keys": ({"gateway": {"apiKeys": {"secret": "a", "file": "b"}}}, "gateway.apiKeys has both"),
    "certificates of callers without TLS": (
        {"gateway": {"tls": {"clientCertificates": True}}},
        "gateway.tls.clientCertificates needs gateway.tls.secret",
    ),
    "min and max": ({"encoder": {"replicas": {"min": 3, "max": 2}}}, "encoder.replicas: min 3 is more than max 2"),
    "replica that does not fit": ({"encoder": {"replica": {"gpus": 2}}}, "does not fit into a pod of 1"),
    "scaler's min and max": (
        merged(CLUSTER, {"autoscaling": {"decoder": {"min": 20}}}),
        "autoscaling.decoder: min 20 is more than max 16",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_make_no_sense_are_refused(case):
    values, message = WRONG[case]
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=re.escape(message)):
        rendered(values)


@pytest.mark.parametrize("release", ["r" * 40, "9lives"])
def test_names_that_kuberay_refuses_are_refused(release):
    with pytest.raises(helm_python.HelmRenderError, match=f"release name {release}"):
        rendered({}, release=release)
    rendered({}, release="r" * 39)


def leaves(values, path=()):
    """Path of each value that has a comment of its own: maps on one line are one value."""
    for name, value in values.items():
        yield (*path, name)
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))


def test_every_value_has_a_comment_and_a_place_in_the_schema():
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r" *\w+: *\S", line) and not lines[number - 1].strip().startswith("#"):
            # A block of several lines, such as `resources:`, has its comment above its name.
            parents = [one for one in lines[:number] if len(one) - len(one.lstrip()) < len(line) - len(line.lstrip())]
            above = lines.index(parents[-1])
            assert lines[above - 1].strip().startswith("#"), line
    schema = helm_python.Chart.load(CHART).schema
    for path in leaves(VALUES):
        part = schema
        for name in path:
            if "$ref" in part:
                part = schema["definitions"][part["$ref"].rpartition("/")[2]]
            if name not in part.get("properties", {}):
                part = None
                break
            part = part["properties"][name]
        free = ("settings", "volume", "requests", "limits", "labels")
        assert part is not None or set(path[:-1]) & set(free), path


def test_versions_are_those_of_the_project():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_package_contains_dashboards_and_rules(tmp_path):
    """In the repository these are links to the folders of Grafana and Prometheus."""
    package = helm_python.package(CHART, destination=tmp_path)
    assert of_chart(rendered(CLUSTER, chart=package)) == of_chart(rendered(CLUSTER))
    dashboards = next(
        one["data"] for one in rendered(chart=package) if "grafana_dashboard" in one["metadata"]["labels"]
    )
    assert dashboards == {path.name: path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}


def test_notes_say_how_to_ask_and_what_is_open():
    notes = texts()["NOTES.txt"]
    for line in (
        f"port-forward svc/{RELEASE}-gateway 20050",
        "served in the clear",
        "asked for a key",
        "Grafana shows",
    ):
        assert line in notes
    values = merged(CASES["own-keys"][0], {"monitoring": {"dashboards": False, "podMonitors": False}})
    notes = texts(values)["NOTES.txt"]
    for line in ("served in the clear", "asked for a key", "Grafana shows"):
        assert line not in notes
    assert "https://localhost:20052" in notes and "monitoring.podMonitors" in notes
    assert f"originated-from-cr-name={RELEASE}-encoder" in texts(is_upgrade=True)["NOTES.txt"]
    assert "originated-from" not in texts(CLUSTER, is_upgrade=True)["NOTES.txt"]


def test_commands_of_the_page_install_the_chart():
    """Their values and files of values are those of the chart."""
    commands = re.findall(r"^ *helm install (\S+) (\S+) (.*)$", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    for release, chart, options in commands:
        values = [yaml.safe_load((ROOT / name).read_text()) for name in re.findall(r"-f (\S+)", options)]
        sets = re.findall(r"--set (\S+)", options)
        values += [helm_python.parse_set_string(text.replace("REGISTRY", "registry.test")) for text in sets]
        manifests = rendered(merged({}, *values), chart=ROOT / chart, release=release)
        images = re.findall(r"'image': '(\S+/fsr-\w+):", str(manifests))
        assert len(images) == 4 and all(image.startswith("registry.test/") for image in images)


def test_switches_that_the_page_names_exist():
    page = (ROOT / "docs/deploy.md").read_text()
    table = page.partition("| value | meaning |")[2].partition("\n\n")[0]
    rows = re.findall(r"^ *\| ((?:`[\w.]+`(?:, )?)+) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert {name.partition(".")[0] for name in named} == set(VALUES)
    assert named <= {".".join(path) for path in leaves(VALUES)}


def test_commands_of_the_notes_exist():
    """Each `fsr` command of the notes is one that the command knows, with its options."""
    notes = texts(CASES["own-keys"][0])["NOTES.txt"]
    (line,) = re.findall(r"^ *(fsr scene.*)$", notes, re.MULTILINE)
    for command in line.split(" && "):
        name = command.split()[1]
        help_text = subprocess.run(
            [Path(sys.executable).with_name("fsr"), name, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert all(option in help_text for option in re.findall(r"--[\w-]+", command)), command
