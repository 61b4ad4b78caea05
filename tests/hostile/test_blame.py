"""Whose fault it is, and what a caller learns of the service and of other callers."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fsr.client import Client, ClientError
from helpers.hostile.callers import Input, call_all, post_all
from helpers.hostile.good_requests import generate_request
from helpers.hostile.keys import ANOTHER, HOSTILE
from helpers.hostile.outcomes import check_outcomes
from helpers.waiting import until


class Liar(grpc.GenericRpcHandler):
    """A decoder by all that it says of itself, which it has from a real one; but its answers are no messages."""

    def __init__(self, decoder):
        self._real = grpc.insecure_channel(decoder)

    def service(self, handler_call_details):
        method = handler_call_details.method
        if method.endswith("/Decode"):
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([b"\xff" * 20]))
        call = self._real.unary_unary(method)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: call(request, timeout=60))


@pytest.fixture
def liar(system):
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([Liar(system["decoder-0"])])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.cluster
def test_answers_that_cannot_be_read_are_their_decoders_fault(gateway, system, spawn, liar, picture):
    """The request goes to another decoder, and its caller notices nothing."""
    decoders = f"{liar},{system['decoder-1']}"
    between = spawn("gateway", "--encoders", system["encoder"], "--decoders", decoders, "--discovery-seconds", "0.3")
    until(lambda: answers(between.address, decoders=2))
    options = {"budget": 16, "max_tokens": 4, "ignore_eos": True}
    with Client(gateway.address, api_key=HOSTILE) as honest, Client(between.address) as client:
        text = honest.ask(picture, "Is there a red star?", **options).text
        failovers = 0
        for _ in range(40):
            answer = client.ask(picture, "Is there a red star?", **options)
            assert answer.text == text
            failovers += answer.usage.failovers
            if failovers:
                return
    raise AssertionError("no answer came from the liar")


def answers(address, decoders=1):
    """Whether the gateway there could answer."""
    with Client(address) as client:
        try:
            return any(model.encoders and model.decoders >= decoders for model in client.models(timeout=5))
        except ClientError:
            return False


@pytest.mark.cluster
def test_log_that_cannot_be_written_fails_no_request(gateway, system, free_ports, attackers, picture):
    """The disk is full: /dev/full takes nothing."""
    decoders = ",".join(system[f"decoder-{number}"] for number in range(2))
    port = free_ports()
    flags = ("--encoders", system["encoder"], "--decoders", decoders, "--http-port", str(port))
    full = type(gateway)("gateway", Path("/dev/full"), *flags)
    try:
        until(lambda: answers(full.address))
        good = Input(where="Generate", data=generate_request(picture).SerializeToString())
        bad = Input(where="Generate", data=b"")
        counts = check_outcomes(attackers(call_all, full.address, [good, bad, good]), {"OK", "INVALID_ARGUMENT"})
        assert counts["OK"] == 2
        inputs = [Input(where="GET /v1/models", data=b""), Input(where="POST /v1/chat/completions", data=b"{}")]
        check_outcomes(attackers(post_all, f"127.0.0.1:{port}", inputs), {"200", "400"})
        assert full.metric("fsr_requests_total", code="OK") >= 2
    finally:
        full.end()


def test_cached_pictures_of_one_key_are_not_those_of_another(gateway, picture):
    """Else a caller could learn whether somebody else has asked about a picture."""
    secret = picture + uuid.uuid4().bytes
    with Client(gateway.address, api_key=HOSTILE) as one, Client(gateway.address, api_key=ANOTHER) as other:
        cached = [
            client.ask(secret, "Is there a red star?", budget=16, max_tokens=1).usage.cached_images
            for client in (one, one, other, other)
        ]
    assert cached == [0, 1, 0, 1]


def test_callers_learn_no_addresses(gateway, system, picture):
    with Client(gateway.address, api_key=HOSTILE) as client:
        answer = client.ask(picture, "Is there a red star?", budget=16, max_tokens=1)
    assert answer.route.request_id and not answer.route.encoders and not answer.route.decoders


def test_logs_hold_neither_keys_nor_questions(gateway, system, attackers, picture):
    request = generate_request(picture, "Where is the zeppelin?")
    inputs = [Input(where="Generate", data=request.SerializeToString())]
    request.budget.tokens = -1
    inputs.append(Input(where="Generate", data=request.SerializeToString()))
    attackers(call_all, gateway.address, inputs, key=HOSTILE)
    for log in (gateway.log, *system["logs"].glob("*.log")):
        text = log.read_text()
        assert "zeppelin" not in text and HOSTILE not in text
