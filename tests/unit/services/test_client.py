"""The SDK's own rules."""

import inspect
import re

import grpc
import pytest

import services.client
from services.client import ClientError, InvalidRequestError, OverloadedError, Tls, errors
from services.client.aio import AsyncClient
from services.client.build import generate_request
from services.client.errors import from_rpc


def rpc_error(code, details="", **trailing):
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailing.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_the_tree_in_the_docstring_is_the_tree():
    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, ClientError) and kind is not ClientError
    }
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__)) == kinds
    assert kinds | {"ClientError"} <= set(services.client.__all__)
    assert all(hasattr(services.client, name) for name in services.client.__all__)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_becomes_one_of_the_tree(code):
    assert isinstance(from_rpc(rpc_error(code, "field: reason"), 1), ClientError)


def test_hints_travel_with_the_error():
    trailing = {"retry_after_ms": "1500", "fsr_request_id": "r", "fsr_encoders": "e:1", "fsr_decoders": "a:1,b:1"}
    error = from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", **trailing), 1)
    assert isinstance(error, OverloadedError) and error.retry_after == 1.5
    assert error.route.decoders == ("a:1", "b:1") and error.route.encoders == ("e:1",)


def test_a_message_that_is_too_large_is_the_callers_mistake():
    details = "SERVER: Received message larger than max (100 vs. 10)"
    error = from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, details), 1)
    assert isinstance(error, InvalidRequestError) and "scale the pictures down" in str(error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": "/no/such/picture"}, "image: cannot read"),
        ({"budget": True}, "budget: expected"),
        ({"budget": 2**40}, "budget: .* no sensible number"),
        ({"wire_dtype": "fp8"}, "wire_dtype: 'fp8' is unknown"),
        ({"options": {"rho": object()}}, "options: "),
        ({"seed": -1}, "request: "),
        ({"max_tokens": 2**40}, "request: "),
    ],
)
def test_what_cannot_be_sent_is_named(arguments, says):
    given = {"images": b"x", "question": "?"} | arguments
    with pytest.raises(InvalidRequestError, match=says):
        generate_request(given.pop("images"), given.pop("question"), **given)


async def test_oversized_requests_never_leave():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError, match=r"bytes exceed \d+; scale the pictures down"):
            await client.ask(b"x" * (65 * 2**20), "?")


def test_half_a_client_certificate_is_refused():
    with pytest.raises(InvalidRequestError, match="cert and key belong together"):
        Tls(cert="x")
    with pytest.raises(InvalidRequestError, match="cannot read ca"):
        Tls(ca="/no/such/ca").credentials()


async def test_a_key_that_no_header_can_carry_is_refused():
    with pytest.raises(InvalidRequestError, match="api_key"):
        AsyncClient(api_key="a\nb")
