import inspect
import re

import grpc
import pytest

import fsr.client
from fsr.client import (
    ClientError,
    DeadlineExceeded,
    InvalidRequestError,
    OverloadedError,
    ServerError,
    UnavailableError,
    errors,
)
from fsr.client.errors import ASK_NAMES, NAMES, from_rpc

Code = grpc.StatusCode
FROM_GATEWAY = {"fsr_request_id": "r", "fsr_encoders": "e:1", "fsr_decoders": "a:1,b:1"}


def rpc_error(code, details="", **trailing):
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailing.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_the_tree_in_the_docstring_lists_every_error():
    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, ClientError) and kind is not ClientError
    }
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__)) == kinds
    assert kinds | {"ClientError"} <= set(fsr.client.__all__)
    assert all(hasattr(fsr.client, name) for name in fsr.client.__all__)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_status_becomes_a_client_error(code):
    assert isinstance(from_rpc(rpc_error(code, "field: reason"), 1), ClientError)


def test_retry_after_and_route_come_with_the_error():
    error = from_rpc(rpc_error(Code.RESOURCE_EXHAUSTED, "full", retry_after_ms="1500", **FROM_GATEWAY), 1)
    assert isinstance(error, OverloadedError) and error.retry_after == 1.5
    assert error.route.decoders == ("a:1", "b:1") and error.route.encoders == ("e:1",)


@pytest.mark.parametrize("details", ["Received message larger than max (100 vs. 10)", "", "another: wording"])
@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (Code.RESOURCE_EXHAUSTED, InvalidRequestError, r"request: is larger .*; scale the pictures down"),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded, r"timeout: no complete answer within 1\.5 s; allow more time"),
        (
            Code.UNAVAILABLE,
            UnavailableError,
            r"gateway: no connection .*; start it with `fsr up`, or check that the address is its host:port",
        ),
        (Code.UNIMPLEMENTED, ServerError, r"gateway: the service at this address is not a gateway .*; check"),
    ],
)
def test_grpc_error_when_gateway_did_not_answer_is_told_by_its_code(code, kind, says, details):
    """Whatever gRPC's own sentence is: its wording changes between versions."""
    error = from_rpc(rpc_error(code, details), 1.5)
    assert type(error) is kind and re.match(says, str(error))
    assert code is Code.DEADLINE_EXCEEDED or (details or code.name) in str(error)


@pytest.mark.parametrize("trailing", [FROM_GATEWAY, {"retry_after_ms": "500"}])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.RESOURCE_EXHAUSTED, OverloadedError),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.UNAVAILABLE, UnavailableError),
    ],
)
def test_gateway_error_keeps_its_kind_and_details(code, kind, trailing):
    """Even if its details look like a sentence of gRPC's."""
    details = "failed to connect, larger than max"
    error = from_rpc(rpc_error(code, details, **trailing), 1)
    assert type(error) is kind and str(error) == details


@pytest.mark.parametrize(
    ("details", "of_ask", "of_others"),
    [
        ("sampling.top_p: 3 is", "top_p: 3 is", "top_p: 3 is"),
        ("method.options: fsr has", "options: fsr has", "options: fsr has"),
        ("method.options.rho: a text", "options.rho: a text", "options.rho: a text"),
        ("method.name: 'x' is unknown", "method: 'x' is unknown", "method: 'x' is unknown"),
        ("budget.tokens: 0 is", "budget: 0 is", "budget: 0 is"),
        ("budget.spread: 7 is", "spread: 7 is", "spread: 7 is"),
        ("deadline: 9 s are", "timeout: 9 s are", "timeout: 9 s are"),
        ("messages: the last turn asks", "question: asks", "messages: the last turn asks"),
        ("images[0].data: is no", "images[0].data: is no", "images[0].data: is no"),
    ],
)
def test_fields_of_a_gateway_error_have_the_names_of_the_sdk(details, of_ask, of_others):
    """A request that the caller has built has the gateway's names, and keeps them."""
    error = rpc_error(Code.INVALID_ARGUMENT, details, **FROM_GATEWAY)
    told = [str(from_rpc(error, 1, names)) for names in (ASK_NAMES, NAMES, {})]
    assert told == [of_ask, of_others, details]
