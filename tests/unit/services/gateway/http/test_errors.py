"""Errors as the caller by HTTP reads them."""

import json

import pytest

from fsr.common.errors import STATUS, InvalidRequest, NotReady, Overloaded, Unauthenticated
from fsr.gateway.http.errors import error_object, error_response
from fsr.gateway.http.field_names import FieldNames


@pytest.fixture
def names():
    names = FieldNames()
    names.images = ["messages[1].content[0].image_url.url", "messages[1].content[2].image_url.url"]
    names.rename("sampling.max_tokens", "max_completion_tokens")
    names.options = {"rho", "model"}
    return names


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("sampling.temperature", "temperature"),
        ("sampling.stop[1]", "stop[1]"),
        ("sampling.max_tokens", "max_completion_tokens"),
        ("budget", "fsr.budget"),
        ("budget.tokens", "fsr.budget"),
        ("budget.auto.radius", "fsr.budget"),
        ("budget.spread", "fsr.spread"),
        ("method.name", "fsr.method"),
        ("method.options.rho", "fsr.options.rho"),
        ("deadline", "fsr.timeout"),
        ("wire_dtype", "fsr.wire_dtype"),
        ("images[1].data", "messages[1].content[2].image_url.url"),
        ("images[1]", "messages[1].content[2].image_url.url"),
        ("messages[1].parts[0].image", "messages[1].content[0]"),
        ("messages[1].role", "messages[1].role"),
        ("rho", "fsr.options.rho"),
        ("kappa", "kappa"),
        ("model", "model"),
    ],
)
def test_field_of_the_gateway_becomes_that_of_the_request(names, field, expected):
    with pytest.raises(InvalidRequest) as caught, names.named():
        raise InvalidRequest(f"{field}: is wrong: a.b; mend it")
    assert str(caught.value) == f"{expected}: is wrong: a.b; mend it"
    assert error_object(caught.value)["error"]["param"] == expected


def test_message_when_it_names_no_field_stays(names):
    with pytest.raises(InvalidRequest, match=r"^The method \w+: is odd") as caught, names.named():
        raise InvalidRequest("The method fsr: is odd")
    assert error_object(caught.value)["error"]["param"] is None


def test_renamed_error_keeps_its_kind_and_retry_hint(names):
    with pytest.raises(Overloaded) as caught, names.named():
        raise Overloaded("budget: is used up", 0.25)
    assert caught.value.retry_after == 0.25


@pytest.mark.parametrize("kind", STATUS)
def test_every_error_has_a_status_and_an_error_object(kind):
    response = error_response(kind("model: is odd"))
    assert 400 <= response.status_code < 600
    body = json.loads(response.body)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("error", "seconds", "milliseconds"),
    [(Overloaded("x", 0.25), "1", "250"), (Overloaded("x", 2.2), "3", "2200"), (NotReady("x"), "1", "1000")],
)
def test_retry_after_in_whole_seconds_and_in_milliseconds(error, seconds, milliseconds):
    headers = error_response(error).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


def test_wrong_request_has_no_retry_after():
    assert "retry-after" not in error_response(InvalidRequest("x: y")).headers


def test_missing_key_asks_for_a_bearer():
    assert error_response(Unauthenticated("authorization: no API key")).headers["www-authenticate"] == "Bearer"
