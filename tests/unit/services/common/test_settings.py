"""Options come from flags, environment and YAML alike, and wrong ones are told in one line each."""

import pytest

from fsr.encoder.settings import EncoderSettings
from fsr.gateway.settings import GatewaySettings

SOURCES = ("flag", "environment", "file")


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load(kind=GatewaySettings, flags=(), environment=None, file=None):
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        arguments = list(flags)
        if file is not None:
            path = tmp_path / "options.yaml"
            path.write_text(file)
            arguments += ["--config", str(path)]
        return kind.load(arguments)

    return load


@pytest.mark.parametrize(
    ("given", "port"),
    [
        (SOURCES, 1001),
        (("environment", "file"), 1002),
        (("file",), 1003),
        (("flag", "file"), 1001),
        ((), 50050),
    ],
)
def test_flags_win_over_environment_over_file(load, given, port):
    settings = load(
        flags=["--port", "1001"] if "flag" in given else [],
        environment={"FSR_GATEWAY_PORT": "1002"} if "environment" in given else {},
        file="port: 1003\nmax_requests: 7\n" if "file" in given else None,
    )
    assert settings.port == port
    assert settings.max_requests == (7 if "file" in given else 64)


def test_the_file_can_be_named_by_the_environment(load, tmp_path):
    (tmp_path / "by-name.yaml").write_text("model: other\n")
    settings = load(EncoderSettings, environment={"FSR_ENCODER_CONFIG": str(tmp_path / "by-name.yaml")})
    assert settings.model == "other"


@pytest.mark.parametrize(
    "arguments",
    [
        {"flags": ["--decoders", "a:1,b:2"]},
        {"environment": {"FSR_GATEWAY_DECODERS": "a:1, b:2"}},
        {"file": "decoders: [a:1, b:2]"},
        {"file": "decoders: a:1,b:2"},
    ],
)
def test_lists_from_every_source(load, arguments):
    assert load(**arguments).decoders == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"flags": ["--nonsense", "1"]}, "--nonsense"),
        ({"environment": {"FSR_GATEWAY_NONSENSE": "1"}}, "FSR_GATEWAY_NONSENSE: is no option"),
        ({"file": "nonsense: 1"}, "--nonsense: is no option"),
        ({"file": "[1"}, "is no YAML"),
        ({"file": "just words"}, "holds no options"),
        ({"flags": ["--config", "/no/such/file"]}, "--config: cannot read /no/such/file"),
        ({"environment": {"FSR_GATEWAY_CONFIG": "/no/such/file"}}, "FSR_GATEWAY_CONFIG: cannot read"),
        ({"flags": ["--port"]}, "--port: expected one argument"),
        ({"flags": ["--port", "70000"]}, "--port: Input should be less than"),
        ({"flags": ["--encoders", "nowhere"]}, "--encoders: 'nowhere' is no address"),
        ({"flags": ["--decoders", "dns:///name:http"]}, "--decoders: .* is no address"),
        (
            {"kind": EncoderSettings, "flags": ["--host", "127.0.0.1"]},
            "--host: '127.0.0.1' is not possible: .* firewall",
        ),
        ({"flags": ["--tls-cert", "/no/cert"]}, "--tls-cert: no file /no/cert"),
        ({"flags": ["--tls-key", __file__]}, "tls_cert and tls_key: give both"),
        ({"flags": ["--wire-dtype", "fp8"]}, "--wire-dtype: Input should be"),
        ({"environment": {"FSR_GATEWAY_PORT": "tcp://10.0.0.1:50050"}}, "enableServiceLinks: false"),
    ],
)
def test_wrong_options_are_one_line_each(load, arguments, says):
    with pytest.raises(SystemExit, match=says) as caught:
        load(**arguments)
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and last == "see --help for every option"


def test_two_wrong_options_are_two_lines(load):
    with pytest.raises(SystemExit) as caught:
        load(flags=["--port", "x", "--max-requests", "0"])
    assert str(caught.value).count("error: ") == 2


def test_variables_that_kubernetes_adds_are_not_ours(load):
    load(environment={"FSR_GATEWAY_SERVICE_HOST": "10.0.0.1", "FSR_GATEWAY_PORT_50050_TCP_ADDR": "10.0.0.1"})
