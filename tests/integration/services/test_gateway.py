"""A real gateway process: TLS, API keys, health, limits. It needs no replica for that."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import trustme
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fsr.client import (
    AuthenticationError,
    Client,
    ForbiddenError,
    InvalidRequestError,
    Tls,
    UnavailableError,
)
from fsr.common.health import check
from fsr.v1 import gateway_pb2, gateway_pb2_grpc, types_pb2
from helpers.waiting import until

NOWHERE = ("--encoders", "127.0.0.1:9", "--decoders", "127.0.0.1:9", "--log-level", "warning")

SMALL = ("--max-message-bytes", "100000", "--max-images-bytes", "60000", "--max-image-bytes", "40000")
MANY = struct_pb2.Struct()
MANY.update({"a": [None] * 300})
SMALL += ("--max-frames", "4", "--max-messages", "9", "--max-parts", "12")


class Certificates:
    """A server's, a client's, and the authority behind both."""

    def __init__(self, folder):
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        for name, issued in (("server", authority.issue_cert("gateway.test")), ("client", authority.issue_cert("me"))):
            setattr(self, f"{name}_cert", folder / f"{name}.pem")
            setattr(self, f"{name}_key", folder / f"{name}.key")
            issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
            issued.private_key_pem.write_to_path(folder / f"{name}.key")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def health_port(free_ports):
    return free_ports()


@pytest.fixture(scope="module")
def gateways(spawn, certificates, health_port, tmp_path_factory):
    """Four at once: plain, with keys, with TLS and keys, with TLS and client certificates."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("open-sesame\nonly-small small\n")
    tls = ("--tls-cert", str(certificates.server_cert), "--tls-key", str(certificates.server_key))
    started = {
        "plain": spawn("gateway", *NOWHERE, *SMALL),
        "keys": spawn("gateway", *NOWHERE, "--api-keys-file", str(keys), "--discovery-seconds", "0.2"),
        "tls": spawn("gateway", *NOWHERE, *tls, "--api-keys", "open-sesame"),
        "mutual": spawn(
            "gateway", *NOWHERE, *tls, "--tls-client-ca", str(certificates.ca), "--health-port", str(health_port)
        ),
    }
    for service in started.values():
        until(lambda address=service.address: listens(address))
    return started | {"keys_file": keys}


def listens(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, port), timeout=60).close()
    except OSError:
        return False
    return True


def models(service, **options):
    with Client(service.address, **options) as client:
        return client.models(timeout=120)


def test_tls_with_the_right_authority_and_name(gateways, certificates):
    trusted = Tls(ca=certificates.ca, server_name="gateway.test")
    assert models(gateways["tls"], tls=trusted, api_key="open-sesame") == []


@pytest.mark.parametrize(
    "tls",
    [
        lambda c: None,
        lambda c: Tls(server_name="gateway.test"),
        lambda c: Tls(ca=c.ca, server_name="other.test"),
    ],
    ids=["plain", "unknown authority", "another name"],
)
def test_tls_refuses_what_it_should(gateways, certificates, tls):
    with (
        pytest.raises(UnavailableError),
        Client(gateways["tls"].address, tls=tls(certificates), api_key="open-sesame") as client,
    ):
        client.models(timeout=60)


def test_client_certificates_are_asked_for(gateways, certificates):
    options = {"ca": certificates.ca, "server_name": "gateway.test"}
    known = Tls(cert=certificates.client_cert, key=certificates.client_key, **options)
    assert models(gateways["mutual"], tls=known) == []
    with pytest.raises(UnavailableError), Client(gateways["mutual"].address, tls=Tls(**options)) as client:
        client.models(timeout=60)


def test_health_is_asked_without_the_certificates_that_callers_need(gateways, certificates, health_port):
    options = {"ca": certificates.ca, "server_name": "gateway.test"}
    models(
        gateways["mutual"], tls=Tls(cert=certificates.client_cert, key=certificates.client_key, **options)
    )  # it runs
    assert check(f"127.0.0.1:{health_port}", timeout=60) == f"127.0.0.1:{health_port}: NOT_SERVING"
    assert "UNAVAILABLE" in check(gateways["mutual"].address, timeout=60)


@pytest.mark.parametrize("option", ["--port", "--health-port", "--metrics-port"])
def test_a_port_in_use_is_one_clear_line(option):
    ports = {"--port": "0", "--metrics-port": "0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "fsr.gateway",
            *NOWHERE,
            *(word for pair in ports.items() for word in pair),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {option}: ") and "in use" in done.stderr.splitlines()[-1]


def test_a_keys_file_with_a_mistake_ends_the_gateway_with_one_clear_line(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{kee: a}]")
    command = [sys.executable, "-m", "fsr.gateway", *NOWHERE, "--port", "0", "--metrics-port", "0"]
    done = subprocess.run([*command, "--api-keys-file", str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(
        f"error: --api-keys-file: {file}: keys[0].kee: is no field here; use"
    )


def test_keys(gateways):
    assert models(gateways["keys"], api_key="open-sesame") == []
    for wrong, says in ((None, "no API key; send"), ("sesame", "the API key is unknown; check it")):
        with pytest.raises(AuthenticationError, match=says):
            models(gateways["keys"], api_key=wrong)
        with (
            pytest.raises(AuthenticationError, match=says),
            Client(gateways["keys"].address, api_key=wrong) as client,
        ):
            client.ask(b"x", "?", budget=1)


def test_calls_that_are_refused_at_the_door_are_counted(gateways):
    service, channel = gateways["keys"], grpc.insecure_channel(gateways["keys"].address)
    stub, names = gateway_pb2_grpc.GatewayServiceStub(channel), ("ListModels", "Compress", "Generate")
    code = {"code": "UNAUTHENTICATED"}
    before = [service.metric("fsr_requests_total", rpc=rpc, **code) for rpc in names]
    everything = service.metric("fsr_requests_total", **code)
    for call in (
        lambda: stub.ListModels(gateway_pb2.ListModelsRequest()),
        lambda: stub.Compress(gateway_pb2.CompressRequest()),
        lambda: list(stub.Generate(gateway_pb2.GenerateRequest())),
        lambda: channel.unary_unary("/fsr.v1.GatewayService/NoSuchRpc")(b""),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    channel.close()
    assert [service.metric("fsr_requests_total", rpc=rpc, **code) for rpc in names] == [n + 1 for n in before]
    assert service.metric("fsr_requests_total", **code) == everything + 3  # labels hold no caller's data


def test_a_key_bound_to_models_asks_no_other(gateways):
    with Client(gateways["keys"].address, api_key="only-small") as client:
        with pytest.raises(ForbiddenError, match="may not ask 'huge'; ask small"):
            client.ask(b"x", "?", budget=1, model="huge")
        with pytest.raises(UnavailableError):
            client.ask(b"x", "?", budget=1, model="small")


def test_keys_change_while_it_runs(gateways):
    file = gateways["keys_file"]
    with pytest.raises(AuthenticationError):
        models(gateways["keys"], api_key="newcomer")
    file.write_text(file.read_text() + "newcomer\n")

    def known():
        try:
            return models(gateways["keys"], api_key="newcomer") == []
        except AuthenticationError:
            return False

    until(known)


def test_health_and_reflection_stay_open(gateways):
    with grpc.insecure_channel(gateways["keys"].address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        told = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked))
    assert "fsr.v1.GatewayService" in {service.name for service in told.list_services_response.service}


def test_the_command_shows_key_and_certificate(gateways, certificates, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    environment = os.environ | {"FSR_API_KEY": "open-sesame", "FSR_TLS_CA": str(certificates.ca)}
    command = ["ask", str(tmp_path / "picture.png"), "?", "--gateway", gateways["tls"].address, "--timeout", "60"]
    for server_name, says in (("gateway.test", "no replica of any model answers yet"), ("other.test", "no connection")):
        done = subprocess.run(
            [sys.executable, "-m", "fsr.cli.main", *command, "--server-name", server_name],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ") and says in done.stderr


def test_a_request_larger_than_the_gateway_takes(gateways):
    with (
        Client(gateways["plain"].address) as client,
        pytest.raises(InvalidRequestError, match=r"larger than .* \(\d+ vs\. 100000\).*scale the pictures down"),
    ):
        client.ask(b"x" * 200_000, "?", budget=1)


def test_no_replica_yet_is_unavailable_with_a_hint_and_counted(gateways):
    with Client(gateways["plain"].address) as client:
        with pytest.raises(UnavailableError, match="no replica of any model answers yet; it may be starting") as caught:
            client.ask(b"x", "?", budget=1)
        assert caught.value.retry_after == 1.0
        assert caught.value.route.request_id and caught.value.route.decoders == ()
    page = urllib.request.urlopen(f"http://{gateways['plain'].metrics}/metrics").read().decode()
    assert 'fsr_requests_total{code="UNAVAILABLE",interface="grpc",rpc="Generate"} 1.0' in page


def test_log_that_cannot_be_written_fails_no_request(spawn):
    service = spawn("gateway", "--encoders", "127.0.0.1:9", "--decoders", "127.0.0.1:9", log=Path("/dev/full"))
    until(lambda: listens(service.address))
    with Client(service.address) as client:
        assert client.models(timeout=120) == []
        with pytest.raises(UnavailableError, match="no replica of any model answers yet"):
            client.ask(b"x", "?", budget=1)
    assert service.metric("fsr_log_lines_lost") > 0
    assert service.end(signal.SIGTERM) == 0


def message(role=types_pb2.ROLE_USER, **part):
    return types_pb2.Message(role=role, parts=[types_pb2.Part(**part)] if part else [])


SHOWN_AGAIN = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(image=0)] * 12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": []}, "messages: is empty"),
        ({"messages": [message(99, text="x")]}, "the last turn must be the user's"),
        ({"messages": [message(99, text="x"), message(text="x")]}, r"messages\[0\]\.role: is not set or unknown"),
        ({"messages": [message()]}, r"images\[0\]: no message shows it"),
        ({"messages": [message(image=0), message(text=" ")]}, "asks nothing"),
        ({"messages": [message(image=3), message(text="x")]}, r"messages\[0\]\.parts\[0\]\.image: 3 of 1 images"),
        ({"messages": [types_pb2.Message(role=2, parts=[types_pb2.Part()])]}, r"parts\[0\]: is empty"),
        ({"messages": [message(image=0), message(text="x" * 70_000)]}, "bytes of text exceed"),
        (
            {"messages": [message(image=0), *[message(text="x")] * 9]},
            "messages: 10 are more than 9; leave out the earl",
        ),
        (
            {"messages": [SHOWN_AGAIN, message(text="x")]},
            "messages: their 13 parts are more than 12; join texts .* fewer",
        ),
        ({"images": [types_pb2.Image(data=b"x")] * 17}, "images: 17 are more than 16; .* frames of a video as one"),
        ({"images": [types_pb2.Image(frames=[b"x"] * 3)] * 2}, "images: their 6 frames are more than 4"),
        ({"images": [types_pb2.Image(data=b"x", frames=[b"x"])]}, r"images\[0\]: has both data and frames"),
        ({"images": [types_pb2.Image()]}, r"images\[0\]\.data: is empty"),
        ({"images": [types_pb2.Image(frames=[b"x", b""])]}, r"images\[0\]\.frames\[1\]: is empty"),
        ({"images": [types_pb2.Image(frames=[b"x" * 40_001])]}, r"images\[0\]\.frames\[0\]: 40001 bytes exceed 40000"),
        ({"images": [types_pb2.Image(data=b"x" * 31_000)] * 2}, "images: 62000 bytes together exceed 60000"),
        ({"images": [types_pb2.Image(frames=[b"x"], frames_per_second=-1)]}, r"images\[0\]\.frames_per_second: -1"),
        ({"budget": types_pb2.Budget(tokens=0)}, "budget.tokens"),
        ({"budget": types_pb2.Budget(keep_ratio=float("nan"))}, "budget.keep_ratio"),
        ({"budget": types_pb2.Budget(auto=types_pb2.AutoBudget(min_tokens=9, max_tokens=3))}, "budget.auto"),
        ({"budget": types_pb2.Budget(auto=types_pb2.AutoBudget(radius=float("inf")))}, "budget.auto.radius"),
        ({"wire_dtype": 77}, "wire_dtype: 77 is unknown"),
        ({"sampling": types_pb2.Sampling(top_p=2)}, "sampling.top_p"),
        ({"sampling": types_pb2.Sampling(top_k=-1)}, "sampling.top_k"),
        ({"sampling": types_pb2.Sampling(repetition_penalty=-1)}, "sampling.repetition_penalty"),
        ({"sampling": types_pb2.Sampling(stop=["a", ""])}, "sampling.stop: holds an empty"),
        ({"sampling": types_pb2.Sampling(stop=["a"] * 17)}, "sampling.stop: 17 strings"),
        (
            {"sampling": types_pb2.Sampling(stop=["a", "b" * 257])},
            r"sampling.stop\[1\]: 257 characters .*; send its begin",
        ),
        ({"sampling": types_pb2.Sampling(temperature=9e-7)}, "sampling.temperature: 9e-07 is below 1e-6; 0 is greedy"),
        ({"sampling": types_pb2.Sampling(repetition_penalty=1e-40)}, "sampling.repetition_penalty: 1e-40 is below"),
        ({"model": "\x01" * 20_000}, "model: 20000 characters are more than 512; send a shorter one"),
        ({"method": types_pb2.Method(name="ü" * 5000)}, "method.name: 5000 characters are more than 512"),
        ({"method": types_pb2.Method(options=MANY)}, r"method\.options\.a: with it, options hold more than 256 values"),
        ({"messages": [types_pb2.Message()] * 5000}, "messages: the request has more than 2142 fields with it"),
    ],
)
def test_raw_requests_are_checked_before_anything_is_spent(gateways, change, says):
    good = {
        "images": [types_pb2.Image(data=b"x")],
        "messages": [message(image=0), message(text="x")],
        "budget": types_pb2.Budget(tokens=3),
    }
    request = gateway_pb2.GenerateRequest(**(good | change))
    with (
        grpc.insecure_channel(gateways["plain"].address) as channel,
        pytest.raises(grpc.RpcError, match=says) as caught,
    ):
        list(gateway_pb2_grpc.GatewayServiceStub(channel).Generate(request, timeout=60))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_deadline_beyond_reason_is_refused_and_counted(gateways):
    refused = {"rpc": "Generate", "code": "INVALID_ARGUMENT"}
    before = gateways["plain"].metric("fsr_requests_total", **refused)
    with (
        Client(gateways["plain"].address) as client,
        pytest.raises(InvalidRequestError, match=r"^timeout: .* more than") as caught,
    ):
        client.ask(b"x", "?", budget=1, timeout=100_000)
    assert caught.value.route.request_id
    assert gateways["plain"].metric("fsr_requests_total", **refused) == before + 1


def test_bytes_when_they_are_no_request_are_refused_counted_and_logged(gateways):
    gateway = gateways["plain"]
    for rpc in ("Generate", "Compress", "ListModels"):
        refused = {"rpc": rpc, "code": "INVALID_ARGUMENT"}
        before = gateway.metric("fsr_requests_total", **refused)
        with grpc.insecure_channel(gateway.address) as channel, pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(f"/fsr.v1.GatewayService/{rpc}")(b"\xff" * 100, timeout=60))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(f"request: cannot be read as {rpc}Request; check the client")
        assert gateway.metric("fsr_requests_total", **refused) == before + 1


class Memory:
    """What the process of a service takes now, and took at most since this was made, in MiB."""

    def __init__(self, service):
        self._folder = Path(f"/proc/{service._process.pid}")
        (self._folder / "clear_refs").write_text("5")  # resets the peak
        self.before = self._read("VmRSS")

    def _read(self, name):
        (line,) = [line for line in (self._folder / "status").read_text().splitlines() if line.startswith(name)]
        return int(line.split()[1]) / 1024

    @property
    def kept(self):
        return self._read("VmRSS") - self.before

    @property
    def peak(self):
        return self._read("VmHWM") - self.before


# 60 MiB of empty messages, which would take more than a gigabyte once they are parsed. 60 KiB if they are compressed.
EMPTIES = b"\x12\0" * (30 * 2**20)


OWN_CONNECTION = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def refusal_of_empties(gateway, key, **options):
    """The code of the status."""
    with grpc.insecure_channel(gateway.address, options=OWN_CONNECTION, **options) as channel:
        generate = channel.unary_stream("/fsr.v1.GatewayService/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            list(generate(EMPTIES, timeout=120, metadata=[("authorization", f"Bearer {key}")]))
    return caught.value.code()


def test_messages_when_their_callers_have_no_key_are_not_taken(gateways):
    memory = Memory(gateways["keys"])
    with ThreadPoolExecutor(4) as pool:
        codes = [pool.submit(refusal_of_empties, gateways["keys"], "unknown") for _ in range(4)]
        assert {code.result() for code in codes} == {grpc.StatusCode.UNAUTHENTICATED}
    assert memory.peak < 50


def test_message_when_it_is_compressed_is_not_unpacked(gateways):
    memory = Memory(gateways["keys"])
    code = refusal_of_empties(gateways["keys"], "open-sesame", compression=grpc.Compression.Gzip)
    assert code == grpc.StatusCode.UNIMPLEMENTED and memory.peak < 50


def test_message_when_it_is_large_and_refused_leaves_nothing_in_memory(gateways):
    memory = Memory(gateways["keys"])
    for _ in range(4):
        assert refusal_of_empties(gateways["keys"], "open-sesame") == grpc.StatusCode.INVALID_ARGUMENT
    # One message alone would take 1200 once it is parsed. gRPC for Python holds its bytes three times at first,
    # and the allocator gives the last of them back when it likes to.
    assert memory.kept < 250 and memory.peak < 400
