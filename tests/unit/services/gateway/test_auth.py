import asyncio
import os

import grpc
import pytest
from structlog.testing import capture_logs

from fsr.common.errors import Forbidden, Unauthenticated
from fsr.gateway.callers.auth import ANYBODY, ApiKeys, Authentication
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import gateway_pb2, gateway_pb2_grpc


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who may ask what\nalpha\nbeta small large\n")
    return ApiKeys(["gamma"], file), file


@pytest.mark.parametrize("authorization", ["Bearer alpha", "bearer  alpha", "Bearer gamma"])
def test_caller_when_its_key_names_no_model_may_use_all(keys, authorization):
    caller = keys[0].caller_of(authorization)
    caller.check_model("any model")
    assert caller.salt


def test_caller_when_its_key_names_models_may_use_only_these(keys):
    caller = keys[0].caller_of("Bearer beta")
    caller.check_model("small")
    with pytest.raises(Forbidden, match="ask large, small"):
        caller.check_model("huge")
    assert caller.salt != keys[0].caller_of("Bearer alpha").salt


def test_caller_when_no_keys_are_required_is_anybody():
    assert ApiKeys([], None).caller_of("") == ANYBODY


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer delta", "Basic alpha", "alpha", "Bearer alph"]
)
def test_caller_when_its_key_is_unknown_is_refused(keys, authorization):
    with pytest.raises(Unauthenticated, match="authorization: "):
        keys[0].caller_of(authorization)


def test_keys_when_their_file_changes_are_read_again_and_when_it_goes_are_kept(keys):
    known, file = keys
    file.write_text("delta\n")
    known.refresh()
    known.caller_of("Bearer delta")
    with pytest.raises(Unauthenticated):
        known.caller_of("Bearer alpha")
    file.unlink()
    known.refresh()
    known.caller_of("Bearer delta")


def test_keys_when_a_symbolic_link_leads_to_another_file_are_read_again(tmp_path):
    """As Kubernetes changes a mounted Secret; both files have the same size and time."""
    for version, key in (("one", "alpha"), ("two", "gamma")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(f"keys: [{{key: {key}}}]")
        os.utime(tmp_path / version / "keys.yaml", ns=(0, 0))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "keys.yaml").symlink_to("..data/keys.yaml")
    known = ApiKeys([], tmp_path / "keys.yaml")
    known.caller_of("Bearer alpha")
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    known.refresh()
    known.caller_of("Bearer gamma")
    with pytest.raises(Unauthenticated):
        known.caller_of("Bearer alpha")


def test_keys_when_a_new_version_is_broken_stay_and_one_line_says_why(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("keys: [{key: alpha}]")
    known = ApiKeys([], file)
    file.write_text("keys: [{kee: beta}]")
    with capture_logs() as lines:
        for _ in range(3):
            known.refresh()
    (line,) = lines
    assert (line["log_level"], line["file"]) == ("error", str(file)) and "keys[0].kee: is no field" in line["reason"]
    known.caller_of("Bearer alpha")
    file.write_text("keys: [{key: beta}]")
    known.refresh()
    known.caller_of("Bearer beta")


@pytest.mark.parametrize("rpc", ["Generate", "Compress", "ListModels"])
async def test_call_when_it_has_no_key_is_refused_before_its_message_has_arrived(rpc):
    metrics, service = Metrics(), gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"]
    server = grpc.aio.server(interceptors=[Authentication(ApiKeys(["alpha"], None), service, metrics)])
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway_pb2_grpc.GatewayServiceServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(60):
        call = channel.stream_stream(f"/{service.full_name}/{rpc}")()
        assert await call.code() == grpc.StatusCode.UNAUTHENTICATED  # nothing was sent
        assert (await call.details()).startswith("authorization: no API key")
    await server.stop(None)
    labels = {"interface": "grpc", "rpc": rpc, "code": "UNAUTHENTICATED"}
    assert metrics.registry.get_sample_value("fsr_requests_total", labels) == 1
