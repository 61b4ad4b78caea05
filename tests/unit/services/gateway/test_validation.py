"""Checks that gateway and encoder share."""

import pytest

from fsr.common.errors import InvalidRequest
from fsr.encoder.request_plan import plan_of
from fsr.gateway.settings import GatewaySettings
from fsr.gateway.validation import check_compress
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
