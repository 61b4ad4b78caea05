"""The manifests: every overlay builds, and every reference in it leads to something."""

import json
import shutil

import kubernetes_validate
import pytest
import yaml

from deploy.catalogue import catalogue, series
from deploy.grafana.queries import metrics, selectors
from deploy.k8s.build import TARGET, build
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.serving.ingress import environment as ingress_environment
from fsr.encoder.serving.ray_environment import ray_environment
from fsr.encoder.settings import EncoderSettings
from helpers.images import environment
from helpers.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    SETTINGS,
    add_components,
    announced,
    containers,
    matching,
    of,
    options,
    our_templates,
    port_names,
    replicas,
    templates,
    triggers,
)

# Labels of KubeRay's operator: those of its Helm chart, and those of its ray-operator/config/manager/manager.yaml.
KUBERAY = (
    {"app.kubernetes.io/name": "kuberay-operator"},
    {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"},
)


@pytest.fixture
def deploy_copy(tmp_path):
    """A copy of deploy/ that a test may edit."""
    for part in ("k8s", "grafana"):
        shutil.copytree(ROOT / "deploy" / part, tmp_path / "deploy" / part)
    return tmp_path / "deploy"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_and_ports_match_pods(overlay):
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
            named = [port["port"] for port in rule.get("ports", []) if "endPort" not in port]
            assert all(port in ports for port in named for ports in port_names(pods.values()))
            sources = [source["podSelector"] for source in rule.get("from", []) if "namespaceSelector" not in source]
            assert all(matching(overlay, source) for source in sources)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_release_label_is_set_by_one_patch(overlay, deploy_copy):
    manifests = of(overlay, "PodMonitor", "PrometheusRule")
    assert len(manifests) == 4 and {one["metadata"]["labels"]["release"] for one in manifests} == {
        "kube-prometheus-stack"
    }
    file = deploy_copy / "k8s/overlays" / overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("value: kube-prometheus-stack", "value: mine"))
    changed = of(overlay, "PodMonitor", "PrometheusRule", deploy=deploy_copy)
    assert {one["metadata"]["labels"]["release"] for one in changed} == {"mine"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies_admit_the_traffic_that_is_needed(overlay):
    """With deny-by-default: the gateway reaches both tiers, KubeRay the encoder, Prometheus every metrics port."""
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
    (callers,) = next(p["spec"]["ingress"] for p in policies if p["metadata"]["name"] == "gateway")
    assert callers == {"ports": [{"port": "grpc"}, {"port": "http"}]}
    rules = next(p["spec"]["ingress"] for p in policies if p["metadata"]["name"] == "encoder")
    operators = [one["podSelector"]["matchLabels"] for r in rules for one in r["from"] if "namespaceSelector" in one]
    for labels in KUBERAY:
        assert any(one.items() <= labels.items() for one in operators), labels
    scraped = {owner for one in of(overlay, "PodMonitor") for owner in matching(overlay, one["spec"]["selector"])}
    metrics_policy = next(p for p in policies if p["metadata"]["name"] == "metrics")
    assert scraped == set(matching(overlay, metrics_policy["spec"]["podSelector"])) == set(our_templates(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_http_has_a_service_that_spreads_connections(overlay):
    gateway = dict(containers(overlay))["gateway"]
    (service,) = (one["spec"] for one in of(overlay, "Service") if one["metadata"]["name"] == "gateway-http")
    (port,) = service["ports"]
    assert "clusterIP" not in service  # headless, a client would stay with the first address
    numbers = {one["name"]: one["containerPort"] for one in gateway["ports"]}
    variables = {one["name"]: one.get("value") for one in gateway["env"]}
    assert numbers[port["targetPort"]] == int(variables["FSR_GATEWAY_HTTP_PORT"]) == port["port"]


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
        health = int(environment(component).get("FSR_GATEWAY_HEALTH_PORT", grpc))  # the port grpc may have TLS
        assert ports.get("health", grpc) == health
        assert exposed == {grpc, health, ports["metrics"], ports.get("http", grpc)}
        assert SETTINGS[component].model_fields["port"].default == grpc
        assert container["image"] == f"fsr-{component}:0.1.0"
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                handler = container[probe]
                assert handler.get("grpc", {}).get("port", health) == health
                assert handler.get("tcpSocket", {}).get("port", "grpc") in ports
        if component != "encoder":
            assert container["readinessProbe"]["grpc"]["port"] == health
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        request, limit = (container["resources"][kind].get("nvidia.com/gpu") for kind in ("requests", "limits"))
        assert request == limit


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_with_a_model_have_caches_and_shared_memory(overlay):
    """vLLM and Triton write into HOME, the processes of one engine into /dev/shm."""
    for owner, pod in templates(overlay).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            if "nvidia.com/gpu" not in container["resources"]["requests"]:
                continue
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory", owner
            if container["securityContext"].get("readOnlyRootFilesystem"):
                home = next(one["value"] for one in container["env"] if one["name"] == "HOME")
                assert "emptyDir" in mounts[home], owner


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_no_privileges(overlay):
    for owner, pod in templates(overlay).items():
        spec = pod["spec"]
        user = spec["securityContext"]
        assert user["runAsNonRoot"] and user["runAsUser"] >= 10_000
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        # Ray's autoscaler, which runs in the head of a cluster that scales, calls Kubernetes.
        needs_token = owner == "ray-head" and overlay == "cluster"
        assert spec.get("automountServiceAccountToken", True) == needs_token, owner
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_of_the_overlay_replace_those_of_every_container(overlay, deploy_copy):
    """Also those of Ray's head and workers, in fields that Kubernetes does not know."""
    file = deploy_copy / "k8s/overlays" / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    for entry in kustomization["images"]:
        entry |= {"newName": f"registry.test/{entry['name']}", "newTag": "9"}
    file.write_text(yaml.safe_dump(kustomization))
    images = [one["image"] for _, one in containers(overlay, deploy=deploy_copy)]
    assert sorted(images) == [f"registry.test/fsr-{name}:9" for name in ("decoder", "encoder", "encoder", "gateway")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_another_model_restarts_every_pod(overlay, deploy_copy):
    """Also Ray's head and workers: KubeRay does not notice a change of the ConfigMap's data alone."""
    file = deploy_copy / "k8s/base/model.env"
    file.write_text(file.read_text().replace("_MODEL=fsr-tiny", "_MODEL=/models/other"))
    before, after = (
        {owner: one["envFrom"][0]["configMapRef"]["name"] for owner, one in containers(overlay, **folder)}
        for folder in ({}, {"deploy": deploy_copy})
    )
    assert len(before) == 4 and all(before[owner] != after[owner] for owner in before)
    maps = {one["metadata"]["name"]: one["data"] for one in of(overlay, "ConfigMap", deploy=deploy_copy)}
    assert {maps[name]["FSR_ENCODER_MODEL"] for name in after.values()} == {"/models/other"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_grace_period_is_longer_than_draining(overlay):
    for one in of(overlay, "Deployment"):
        pod = one["spec"]["template"]["spec"]
        drain = SETTINGS[one["metadata"]["name"]].model_fields["drain_seconds"].default
        pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > drain + pause


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_disruption_budgets_let_every_node_drain(overlay):
    """For pods of a RayCluster, which has no scale, Kubernetes takes only an integer minAvailable."""
    covered = set()
    for one in of(overlay, "PodDisruptionBudget"):
        pods, allowed = matching(overlay, one["spec"]["selector"]), dict(one["spec"])
        allowed.pop("selector")
        if any(owner.startswith("ray-") for owner in pods):
            groups = of(overlay, "RayService")[0]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            fewest = sum(
                {"ray-head": 1, **{f"ray-{g['groupName']}": g["minReplicas"] for g in groups}}[p] for p in pods
            )
            assert set(allowed) == {"minAvailable"} and isinstance(allowed["minAvailable"], int)
            assert 1 <= allowed["minAvailable"] < fewest
        else:
            assert allowed == {"maxUnavailable": 1}
        covered |= set(pods)
    assert covered == set(templates(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scalers_name_targets_and_metrics_that_exist(overlay):
    deployments = {one["metadata"]["name"]: one for one in of(overlay, "Deployment")}
    scaled = set()
    per_model = {metric.name for metric in catalogue() if "model" in metric.labels}
    for one in of(overlay, "ScaledObject"):
        spec = one["spec"]
        name = spec["scaleTargetRef"]["name"]
        scaled.add(name)
        assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            if trigger["type"] == "cpu":  # a percentage of the CPU that the containers request
                assert all("cpu" in c["resources"]["requests"] for o, c in containers(overlay) if o == name)
                continue
            assert float(trigger["metadata"]["threshold"]) > 0
            query = trigger["metadata"]["query"]
            assert metrics(query) and metrics(query) <= series()
            # One Prometheus may watch several models, so a query selects this one.
            for selector in selectors(query):
                model = f', model="{announced(overlay)}"' if metrics(selector) & per_model else ""
                assert f'{{namespace="fsr"{model}}}' in selector
    assert scaled <= set(deployments)
    assert all("replicas" not in deployments[name]["spec"] for name in scaled)
    assert scaled == (set() if overlay == "single-gpu" else {"gateway", "decoder"})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gateways_admit_more_than_the_decoders_hold(overlay):
    """If gateways refuse before the decoders' queue is full, the decoders' scaler does not see the load."""
    gateway, decoder = options(overlay, "gateway"), options(overlay, "decoder")
    assert decoder.max_running > DecoderSettings.model_fields["max_running"].default, "a GPU has room for more"
    waiting = triggers(overlay, "decoder").get("waiting", 0)
    assert waiting < decoder.max_waiting
    for gateways, decoders in zip(replicas(overlay, "gateway"), replicas(overlay, "decoder"), strict=True):
        assert gateways * gateway.max_requests > decoders * (decoder.max_running + decoder.max_waiting)
    in_flight = triggers(overlay, "gateway")
    assert all(threshold <= 0.75 * gateway.max_requests for threshold in in_flight.values())
    assert list(in_flight) == (["in-flight"] if overlay == "cluster" else [])
    # 2.7 MB is the measured memory of one request: its picture and 64 tokens (docs/scaling.md).
    limit = dict(containers(overlay))["gateway"]["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Gi")) * 2**30 > 2 * gateway.max_requests * 2.7e6


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_direct_ingress_sets_rays_variables_and_opens_ports(overlay):
    """Ray's processes get the encoder's variables, and gateways reach the replicas' ports."""
    maps = {one["metadata"]["name"]: one["data"] for one in of(overlay, "ConfigMap")}
    needs = ingress_environment(EncoderSettings())
    ray = [one for owner, one in containers(overlay) if owner.startswith("ray-")]
    assert len(ray) == 2
    for container in ray:
        assert needs.items() <= maps[container["envFrom"][0]["configMapRef"]["name"]].items()
    first, end = (int(needs[f"RAY_SERVE_DIRECT_INGRESS_{bound}_GRPC_PORT"]) for bound in ("MIN", "MAX"))
    policies = of(overlay, "NetworkPolicy")
    rules = next(one["spec"]["ingress"] for one in policies if one["metadata"]["name"] == "encoder")
    rule = next(rule for rule in rules if {"port": "serve-grpc"} in rule.get("ports", []))
    assert {"protocol": "TCP", "port": first, "endPort": end - 1} in rule["ports"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}]
    for one in policies:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_component_for_vllm_changes_the_decoders_image_alone(overlay, deploy_copy):
    before = {owner: one["image"] for owner, one in containers(overlay)}
    add_components(deploy_copy, overlay, "vllm")
    after = {owner: one["image"] for owner, one in containers(overlay, deploy=deploy_copy)}
    assert {owner for owner in after if after[owner] != before[owner]} == {"decoder"}
    assert after["decoder"] == before["decoder"].replace("fsr-decoder:", "fsr-decoder-vllm:")


def test_head_of_ray_in_the_cluster_may_die():
    """Its GCS keeps its state in a Redis with a password and a disk, which the encoder's pods alone reach."""
    ray_cluster = of("cluster", "RayService")[0]["spec"]["rayClusterConfig"]
    options = ray_cluster["gcsFaultToleranceOptions"]
    host, _, port = options["redisAddress"].partition(":")
    (service,) = (one for one in of("cluster", "Service") if one["metadata"]["name"] == host)
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    (redis,) = of("cluster", "StatefulSet")
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    secret = options["redisPassword"]["valueFrom"]
    assert [variable["valueFrom"] for variable in container["env"]] == [secret]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert [mounts[claim["metadata"]["name"]] for claim in redis["spec"]["volumeClaimTemplates"]] == ["/data"]
    assert "dir /data" in container["command"][-1] and "requirepass" in container["command"][-1]
    (policy,) = (one["spec"] for one in of("cluster", "NetworkPolicy") if one["metadata"]["name"] == "redis")
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "encoder"}}}]
    assert "gcsFaultToleranceOptions" not in of("single-gpu", "RayService")[0]["spec"]["rayClusterConfig"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_controller_of_serve_looks_at_proxies_as_often_as_on_one_machine(overlay):
    """It runs on the head."""
    (head,) = (one for owner, one in containers(overlay) if owner == "ray-head")
    variables = {one["name"]: one["value"] for one in head["env"]}
    local = {name: value for name, value in ray_environment(EncoderSettings(), {}).items() if "PROXY_HEALTH" in name}
    assert local and local.items() <= variables.items()


def test_prometheus_rule_matches_the_rules():
    assert TARGET.read_text() == build()


def test_dashboards_are_in_the_config_map():
    config_map = next(one for one in of("cluster", "ConfigMap") if one["metadata"]["name"] == "fsr-dashboards")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    folder = ROOT / "deploy/grafana/dashboards"
    assert {name: json.loads(text) for name, text in config_map["data"].items()} == {
        path.name: json.loads(path.read_text()) for path in folder.glob("*.json")
    }
