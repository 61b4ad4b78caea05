"""checkov finds nothing in the manifests but what deploy/k8s/checkov.yaml answers. Run by `make checkov`."""

import json
import subprocess

import pytest
import yaml

from helpers.chart import rendered
from helpers.manifests import OVERLAYS, ROOT, built, templates

pytestmark = pytest.mark.checkov
CHECKOV = ROOT / ".venv-checkov/bin/checkov"
# checkov does not look into a RayService, so its pods are given to it as pods.
RAY = {
    "checkov.io/skip1": "CKV_K8S_8=KubeRay adds the liveness probe",
    "checkov.io/skip2": "CKV_K8S_9=KubeRay adds the readiness probe",
}
HEAD = {"checkov.io/skip3": "CKV_K8S_38=Ray's autoscaler in the head calls Kubernetes"}


def ray_pods(pods):
    for name, pod in pods.items():
        if name.startswith("ray-"):
            annotations = RAY | (HEAD if name == "ray-head" else {})
            metadata = {"name": name, "namespace": "fsr", "annotations": annotations, **pod["metadata"]}
            yield {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata}


def test_checkov_finds_nothing_that_is_not_answered(tmp_path):
    files = {overlay: [*built(overlay), *ray_pods(templates(overlay))] for overlay in OVERLAYS}
    files["chart"] = rendered({"gateway": {"apiKeys": {"file": "keys: []"}, "tls": {"secret": "tls"}}})
    for name, manifests in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(manifests))
    command = [
        CHECKOV,
        "--config-file",
        ROOT / "deploy/k8s/checkov.yaml",
        "-d",
        tmp_path,
        "--skip-download",
        "-o",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = json.loads(done.stdout)
    failed = [(one["check_id"], one["check_name"], one["resource"]) for one in report["results"]["failed_checks"]]
    assert not failed and report["summary"]["passed"] > 500 and not report["summary"]["parsing_errors"]
