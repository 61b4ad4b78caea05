"""The checks of `fsr doctor`."""

import pytest

from fsr.cli.doctor import machine, model, software
from fsr.cli.stack.plan import Plan


def levels(findings):
    return {finding.subject: finding.level for finding in findings}


def test_ports_of_outgoing_connections_are_a_warning():
    found = machine.ports(Plan(port=40000))
    assert found.level in ("warning", "error")  # an error where one is open now
    assert found.level == "error" or "choose a --port below " in found.text


def test_package_that_is_missing_or_does_not_fit_is_an_error(monkeypatch):
    versions = {"ray": "2.40.0", "torch": "2.13.1", "transformers": "5.16.0", "grpcio": "1.85.0"}

    def version(name):
        try:
            return versions[name]
        except KeyError:
            raise software.PackageNotFoundError(name) from None

    monkeypatch.setattr(software, "version", version)
    found = {one.subject: one for one in software.packages()}
    assert levels(found.values()) == dict.fromkeys(versions, "ok") | {"ray": "error", "uvicorn": "error"}
    assert "2.40.0 is not " in found["ray"].text and "pip install 'fsr-gateway[all]'" in found["ray"].text
    assert "is missing, so the gateway cannot run; pip install" in found["uvicorn"].text


def test_torch_that_does_not_load_is_an_error(monkeypatch):
    monkeypatch.setattr(software, "_ASK_TORCH", "raise ImportError('libcudart.so.12: cannot open')")
    found = software.devices("cpu")
    assert found.level == "error" and "libcudart.so.12: cannot open" in found.text and "install it again" in found.text


@pytest.mark.parametrize(
    ("torch", "device", "level", "says"),
    [
        ({"cuda": None, "names": [], "free": []}, "cpu", "ok", "no CUDA; CPU"),
        ({"cuda": None, "names": [], "free": []}, "cuda", "error", "install a build with CUDA"),
        ({"cuda": "13.0", "names": [], "free": []}, "cuda", "error", "check nvidia-smi"),
        ({"cuda": "13.0", "names": ["H200"], "free": [2**37]}, "cuda", "ok", "H200 (128 GiB free)"),
        ({"cuda": "13.0", "names": ["H200"], "free": [2**37]}, "cuda:1", "error", "--device cuda:1 cannot be used"),
        ({"cuda": "13.0", "names": ["H200"], "free": [2**37]}, "cpu", "warning", "use --device cuda"),
    ],
)
def test_devices_are_those_of_torch(monkeypatch, torch, device, level, says):
    monkeypatch.setattr(software, "_ASK_TORCH", f"import json; print(json.dumps({torch | {'version': '2.13'}}))")
    monkeypatch.setattr(software.os.path, "exists", lambda path: False)
    found = software.devices(device)
    assert found.level == level and says in found.text


def test_memory_in_a_container_is_what_its_limit_leaves(monkeypatch, tmp_path):
    for name, text in (
        ("_MEMORY", "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n"),
        ("_MEMORY_LIMIT", str(4 * 2**30)),
        ("_MEMORY_USED", str(3 * 2**30)),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(machine, name, tmp_path / name)
    found = machine.memory()
    assert found.level == "warning" and found.text.startswith("1.0 GiB are free, and a system of the embedded model")
    (tmp_path / "_MEMORY_LIMIT").write_text("max")
    assert machine.memory().level == "ok"


def test_proxy_is_named_with_what_it_is_used_for(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    found = machine.proxies()
    assert "HTTPS_PROXY: used to download models, never between services" in found.text


def test_folder_that_cannot_be_used_is_an_error(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    assert levels(machine.folders())["Ray's folder"] == "error"


def test_hub_id_that_is_downloaded_needs_no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = model.model("org/name", None)
    assert missing.level == "error" and missing.text.startswith("HF_HUB_OFFLINE is set, and org/name is not on this")
    snapshot = tmp_path / "models--org--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    assert model.model("org/name", None).level == "ok"


def test_hub_that_cannot_be_reached_is_an_error_with_a_way_round(monkeypatch, tmp_path, free_ports):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_ports()}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = model.model("org/name", None)
    assert found.level == "error" and "cannot be reached" in found.text and "fsr up --model FOLDER" in found.text
