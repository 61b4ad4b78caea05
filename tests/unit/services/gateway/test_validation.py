"""Checks that gateway and encoder share."""

import pytest

from fsr.common.errors import InvalidRequest
from fsr.encoder.requests.request_plan import plan_of
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.validation import check_compress, check_generate
from fsr.v1 import encoder_pb2, gateway_pb2, types_pb2


def test_budget_when_its_spread_is_unknown_is_refused_by_gateway_and_encoder():
    budget = types_pb2.Budget(tokens=8, spread=7)
    request = gateway_pb2.CompressRequest(images=[types_pb2.Image(data=b"x")], instruction="?", budget=budget)
    for check in (
        lambda: check_compress(request, GatewaySettings()),
        lambda: plan_of(encoder_pb2.EncodeRequest(instruction="?", budget=budget)),
    ):
        with pytest.raises(InvalidRequest, match=r"budget\.spread: 7 is unknown"):
            check()


def test_encoder_when_a_method_s_option_is_not_finite_names_it():
    method = types_pb2.Method(name="fsr")
    method.options.update({"rho": float("nan")})
    with pytest.raises(InvalidRequest, match=r"^method\.options\.rho: nan is no finite number"):
        plan_of(encoder_pb2.EncodeRequest(instruction="?", method=method, budget=types_pb2.Budget(tokens=8)))


def plan(name="fsr", request_id="", **options):
    method = types_pb2.Method(name=name)
    method.options.update(options)
    budget = types_pb2.Budget(tokens=8)
    return plan_of(encoder_pb2.EncodeRequest(instruction="?", method=method, budget=budget, request_id=request_id))


def generate(model="", name="", **options):
    request = gateway_pb2.GenerateRequest(model=model)
    request.messages.add(role=types_pb2.ROLE_USER).parts.add(text="why?")
    request.method.name = name
    request.method.options.update(options)
    return check_generate(request, GatewaySettings())


def compress(model="", name="", **options):
    method = types_pb2.Method(name=name)
    method.options.update(options)
    request = gateway_pb2.CompressRequest(
        images=[types_pb2.Image(data=b"x")], instruction="?", model=model, method=method
    )
    return check_compress(request, GatewaySettings())


@pytest.mark.parametrize(
    ("checks", "change", "says"),
    [
        ([generate, compress, plan], {"name": "ü" * 5000}, r"method\.name: 5000 characters are more than 512; send"),
        (
            [generate, compress, plan],
            {"rho": [0.5] * 300},
            r"method\.options\.rho: with it, options hold more than 256",
        ),
        (
            [generate, compress],
            {"model": "\x01" * 1000},
            "model: 1000 characters are more than 512; send a shorter one",
        ),
        ([plan], {"request_id": "r" * 1000}, "request_id: 1000 characters are more than 512"),
    ],
    ids=["method", "options", "model", "request id"],
)
def test_text_when_it_is_beyond_reason_is_refused_and_not_repeated(checks, change, says):
    for check in checks:
        with pytest.raises(InvalidRequest, match=f"^{says}") as caught:
            check(**change)
        assert len(str(caught.value)) < 200
