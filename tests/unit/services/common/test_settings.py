"""Options from flags, environment and YAML; each wrong option is one line."""

import pytest

from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings

EPHEMERAL = 32768  # from here on Linux gives ports to outgoing connections
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
        ((), 20050),
    ],
)
def test_option_when_several_sources_have_it_comes_from_flag_then_environment_then_file(load, given, port):
    settings = load(
        flags=["--port", "1001"] if "flag" in given else [],
        environment={"FSR_GATEWAY_PORT": "1002"} if "environment" in given else {},
        file="port: 1003\nmax_requests: 7\n" if "file" in given else None,
    )
    assert settings.port == port
    assert settings.max_requests == (7 if "file" in given else 64)


@pytest.mark.parametrize("kind", [GatewaySettings, DecoderSettings])
@pytest.mark.parametrize(("written", "host"), [("::1", "::1"), ("[::1]", "::1"), ("[::]", "::"), ("name", "name")])
def test_host_when_written_with_or_without_brackets_is_the_same(load, kind, written, host):
    assert load(kind, flags=["--host", written]).host == host


def test_file_with_a_byte_order_mark_is_read(load):
    assert load(file="\ufeffport: 1003\nmax_requests: 7\n").port == 1003


def test_file_when_the_environment_names_it_is_read(load, tmp_path):
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
def test_list_when_given_by_any_source_is_split(load, arguments):
    assert load(**arguments).decoders == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        ({"flags": ["--decoders", "::1:20061"]}, r"--decoders: .* IPv6 address in brackets, such as \[::1\]:20061"),
        ({"flags": ["--host", "127.0.0.1:50"]}, "--host: '127.0.0.1:50' is no host; write"),
        ({"environment": {"FSR_GATEWAY_HOST": ""}}, "--host: is empty; write 127.0.0.1"),
        ({"kind": DecoderSettings, "flags": ["--model", "m\udcf6d"]}, "--model: .* is no UTF-8; rename"),
        (
            {"kind": EncoderSettings, "flags": ["--host", "127.0.0.1", "--ray-address", "auto"]},
            "host: with ray_address the proxies of that Ray listen on every interface .* firewall",
        ),
        ({"flags": ["--tls-cert", "/no/cert"]}, "--tls-cert: no file /no/cert"),
        ({"flags": ["--tls-key", __file__]}, "tls_cert and tls_key: give both"),
        ({"flags": ["--tls-cert", __file__, "--tls-key", __file__]}, "tls_cert: .* no certificate and its key in PEM"),
        ({"flags": ["--replica-tls-cert", __file__]}, "replica_tls_cert, replica_tls_key, replica_tls_ca: give all"),
        ({"flags": ["--decoder-tls-name", "d"]}, "decoder_tls_name: needs replica_tls_cert, replica_tls_key"),
        (
            {"kind": DecoderSettings, "flags": ["--tls-cert", __file__, "--tls-key", __file__]},
            "tls_cert, tls_key, tls_client_ca: give all three",
        ),
        ({"flags": ["--wire-dtype", "fp8"]}, "--wire-dtype: Input should be"),
        ({"flags": ["--default-budget", "few"]}, "--default-budget: 'few' is no budget; write tokens"),
        ({"file": "default_budget: 1.5"}, "--default-budget: '1.5' is no budget"),
        ({"flags": ["--default-method", ""]}, "--default-method: String should have at least 1"),
        ({"flags": ["--default-options", '{"rho": Infinity}']}, r"--default-options: option\.rho: inf is no finite"),
        ({"environment": {"FSR_GATEWAY_MAX_TOKENS": "-1"}}, "--max-tokens: Input should be greater"),
        ({"flags": ["--min-tokens", "9", "--max-tokens", "3"]}, "max_tokens: 3 is below min_tokens 9; raise it"),
        ({"flags": ["--default-budget", "64", "--max-tokens", "32"]}, r"default_budget: 64 is outside of 1\.\.32"),
        ({"environment": {"FSR_GATEWAY_PORT": "tcp://10.0.0.1:20050"}}, "enableServiceLinks: false"),
    ],
)
def test_wrong_option_when_loaded_exits_with_one_line(load, arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        load(**arguments)
    *lines, last = str(caught.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and last == "see --help for every option"


@pytest.mark.parametrize(
    "arguments",
    [
        {"flags": ["--default-budget", "0.11", "--default-options", '{"rho": 0.7}', "--max-tokens", "64"]},
        {"file": "default_budget: 0.11\ndefault_options: {rho: 0.7}\nmax_tokens: 64"},
        {
            "environment": {
                "FSR_GATEWAY_DEFAULT_BUDGET": "0.11",
                "FSR_GATEWAY_DEFAULT_OPTIONS": '{"rho": 0.7}',
                "FSR_GATEWAY_MAX_TOKENS": "64",
            }
        },
    ],
)
def test_policy_when_given_by_any_source_is_the_same(load, arguments):
    policy = load(**arguments).policy
    assert (policy.default_budget, policy.default_method, policy.max_tokens) == ("0.11", "fsr", 64)
    assert policy.default_options == {"rho": 0.7}


def test_two_wrong_options_when_loaded_exit_with_two_lines(load):
    with pytest.raises(SystemExit) as caught:
        load(flags=["--port", "x", "--max-requests", "0"])
    assert str(caught.value).count("error: ") == 2


def test_variables_when_kubernetes_adds_them_are_ignored(load):
    load(environment={"FSR_GATEWAY_SERVICE_HOST": "10.0.0.1", "FSR_GATEWAY_PORT_50050_TCP_ADDR": "10.0.0.1"})


@pytest.mark.parametrize("kind", [GatewaySettings, EncoderSettings, DecoderSettings])
def test_default_ports_are_none_of_outgoing_connections(kind):
    defaults = {name: field.default for name, field in kind.model_fields.items() if name.endswith("port")}
    assert defaults["port"] < EPHEMERAL
    assert all(port is None or port < EPHEMERAL for port in defaults.values())


def test_default_addresses_of_replicas_are_their_default_ports():
    ports = {name: GatewaySettings.model_fields[name].default for name in ("encoders", "decoders")}
    assert ports["encoders"] == [f"127.0.0.1:{EncoderSettings.model_fields['port'].default}"]
    assert ports["decoders"] == [f"127.0.0.1:{DecoderSettings.model_fields['port'].default}"]
