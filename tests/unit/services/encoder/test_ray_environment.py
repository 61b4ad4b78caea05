"""What Ray's processes find in their environment."""

import importlib

import pytest

from fsr.encoder.serving.ray_environment import ray_environment
from fsr.encoder.settings import EncoderSettings
from helpers.certificates import Authority, options

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_local_ray_of_this_machine_alone_listens_on_loopback(host):
    assert ray_environment(EncoderSettings(host=host), {}).items() >= LOOPBACK.items()


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"host": "::"}, {"ray_address": "auto"}])
def test_ray_that_others_must_reach_listens_as_ray_decides(settings):
    assert not ray_environment(EncoderSettings(**settings), {}).keys() & LOOPBACK.keys()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_local_ray_asks_for_a_token_of_its_own(host):
    first, second = (ray_environment(EncoderSettings(host=host), {}) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) >= 32 and first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize("given", [{"RAY_AUTH_TOKEN": "mine"}, {"RAY_AUTH_TOKEN_PATH": "/mine"}])
def test_token_of_the_operator_stays(given):
    added = ray_environment(EncoderSettings(), given)
    assert added["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in added


def test_proxy_that_died_is_replaced_within_seconds_unless_the_operator_says_otherwise():
    name = "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"
    assert 3 * float(ray_environment(EncoderSettings(), {})[name]) <= 1  # Serve waits for three checks that fail
    assert name not in ray_environment(EncoderSettings(), {name: "10"})


def test_ray_that_is_joined_decides_about_tokens():
    added = ray_environment(EncoderSettings(ray_address="auto"), {})
    assert not [name for name in added if name.startswith("RAY_AUTH")]


def test_callback_for_serves_proxies_can_be_imported_and_gives_no_middleware():
    path = ray_environment(EncoderSettings(), {})["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name)() == []


def test_certificate_of_the_encoder_is_known_to_all_of_a_local_ray(tmp_path, monkeypatch):
    folder = Authority(tmp_path).issue("encoder", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    settings = EncoderSettings(**options(folder.relative_to(tmp_path)))
    added = ray_environment(settings, {})
    assert [added[f"FSR_ENCODER_TLS_{name}"] for name in ("CERT", "KEY", "CLIENT_CA")] == [
        str(folder / name) for name in ("tls.crt", "tls.key", "ca.crt")
    ]


def test_host_of_a_ray_that_is_joined_is_refused():
    with pytest.raises(ValueError, match="host: with ray_address the proxies of that Ray listen on every interface"):
        EncoderSettings(ray_address="auto", host="127.0.0.1")
    assert EncoderSettings(ray_address="auto", host="0.0.0.0").host == "0.0.0.0"


@pytest.mark.parametrize("settings", [{}, {"host": "::"}, {"ray_address": "auto"}])
def test_ray_beside_a_proxy_reports_its_metrics_without_it(settings):
    added = ray_environment(EncoderSettings(**settings), {"http_proxy": "http://proxy:3128", "no_grpc_proxy": "mine"})
    assert {"127.0.0.1", "::1", "0.0.0.0/0"} <= set(added["no_grpc_proxy"].split(","))
