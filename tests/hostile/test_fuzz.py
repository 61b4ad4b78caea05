"""10,000 requests that are almost good, over every rpc and every HTTP route, and how each of them may end.

The same ones in every run. `helpers/malformed.py` has the bodies of chat requests, none of which is a good one.
"""

import random
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2

from fsr.v1 import decoder_pb2, encoder_pb2, gateway_pb2
from helpers.chat import data_uri
from helpers.hostile.callers import Input, call_all, post_all
from helpers.hostile.good_requests import compress_request, decode_request, encode_request, generate_request
from helpers.hostile.http1 import broken_http
from helpers.hostile.http2 import INCOMPLETE, odd_calls
from helpers.hostile.keys import HOSTILE
from helpers.hostile.mutations import json_mutants, mutants
from helpers.hostile.outcomes import check_outcomes
from helpers.malformed import TEXTS, URL, WHOLE, WRONG, malformed

WRONG_INPUT = {"OK", "INVALID_ARGUMENT"}
# How many inputs of the 10,000 go where, and how they may end.
RPCS = {
    ("gateway", "Generate"): (2000, {*WRONG_INPUT, "NOT_FOUND"}),
    ("gateway", "Compress"): (1000, {*WRONG_INPUT, "NOT_FOUND"}),
    ("gateway", "ListModels"): (200, WRONG_INPUT),
    ("encoder", "Encode"): (1000, {*WRONG_INPUT, "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}),  # it has its own deadline
    ("encoder", "DescribeEncoder"): (100, WRONG_INPUT),
    ("decoder-0", "Decode"): (1400, {*WRONG_INPUT, "FAILED_PRECONDITION"}),
    ("decoder-1", "DescribeDecoder"): (100, WRONG_INPUT),
    ("decoder-1", "Check"): (100, {*WRONG_INPUT, "NOT_FOUND"}),
    ("gateway", "Check"): (100, {*WRONG_INPUT, "NOT_FOUND"}),
}
# What gRPC calls INTERNAL although a caller's bytes are wrong.
REFUSED_BY_GRPC = ("Error parsing '", "Compression bit set", "Decompression failed")
ODD_CALLS, CHAT, COMPRESS, PATHS, BYTES = 500, 1500, 1000, 500, 500
assert sum(count for count, _ in RPCS.values()) + ODD_CALLS + CHAT + COMPRESS + PATHS + BYTES == 10_000


def some(form, count: int) -> int:
    """How many of so many: in the short form one in 40, and at least 5."""
    return count if form.whole else max(5, count // 40)


def cheap(message) -> bool:
    """A mutant that asks for a long answer, or shows a picture hundreds of times, asks for work: that is no fault."""
    sampling, turns = getattr(message, "sampling", None), getattr(message, "messages", ())
    long = sampling is not None and (sampling.max_tokens > 64 or (sampling.ignore_eos and not sampling.max_tokens))
    return not long and sum(len(turn.parts) for turn in turns) <= 100


@pytest.fixture(scope="module")
def good(system, picture):
    """A valid request of each rpc."""
    return {
        "Generate": generate_request(picture, temperature=0.5, top_p=0.9, seed=3, stop=["\n\n"], top_k=5),
        "Compress": compress_request(picture, picture),
        "ListModels": gateway_pb2.ListModelsRequest(),
        "Encode": encode_request(picture, picture),
        "DescribeEncoder": encoder_pb2.DescribeEncoderRequest(),
        "Decode": decode_request(system["encoder"], picture),
        "DescribeDecoder": decoder_pb2.DescribeDecoderRequest(),
        "Check": health_pb2.HealthCheckRequest(service="fsr.v1.GatewayService"),
    }


@pytest.mark.parametrize(("service", "rpc"), RPCS)
def test_requests_that_are_almost_good_end_as_they_may(form, gateway, system, attackers, beside, good, service, rpc):
    count, allowed = RPCS[service, rpc]
    made = mutants(good[rpc], some(form, count), seed=len(rpc), fits=cheap)
    inputs = [Input(where=rpc, data=data, what=what, gzip=number % 7 == 0) for number, (what, data) in enumerate(made)]
    address = gateway.address if service == "gateway" else system[service]
    key = HOSTILE if service == "gateway" else None

    def attack():
        # More at a time keep both cores busy with those that are answered.
        outcomes = attackers(call_all, address, inputs, key=key, at_once=2)
        zipped = [outcome for one, outcome in zip(inputs, outcomes, strict=True) if one.gzip]
        check_outcomes(zipped, {*allowed, "UNIMPLEMENTED"}, silent=rpc == "Check")
        counts = check_outcomes([one for one in outcomes if one not in zipped], allowed, silent=rpc == "Check")
        assert counts["OK"] < 0.9 * len(inputs)

    beside(attack, once=True)


def test_calls_that_no_client_makes_end_as_they_may(form, gateway, attackers, beside, good):
    """gRPC itself refuses most of them, with codes of its own. It leaves open what never comes to its end."""
    body = good["Generate"].SerializeToString()
    codes = {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}

    def attack():
        outcomes = attackers(odd_calls, gateway.address, some(form, ODD_CALLS), 7, body, HOSTILE)
        others = [o for o in outcomes if not (o.code == "OPEN" and any(o.what.endswith(end) for end in INCOMPLETE))]
        of_grpc = [o for o in others if o.code == "INTERNAL" and o.details.startswith(REFUSED_BY_GRPC)]
        check_outcomes([o for o in others if o not in of_grpc], codes | {"CLOSED", "HTTP 415"})

    beside(attack, once=True)


def test_chat_requests_that_are_not_good_are_refused(form, gateway, attackers, beside, picture):
    bodies = malformed(picture, CHAT)[: some(form, CHAT)]
    inputs = [Input(where="POST /v1/chat/completions", data=body, what=repr(body[:150])) for body in bodies]

    def attack():
        check_outcomes(attackers(post_all, gateway.http, inputs, key=HOSTILE, at_once=4), {"400", "404", "415"})

    beside(attack, once=True)


def test_compress_requests_that_are_almost_good_end_as_they_may(form, gateway, attackers, beside, picture):
    body = {
        "model": "fsr-tiny",
        "images": [data_uri(picture), {"type": "image_url", "image_url": {"url": data_uri(picture)}}],
        "instruction": "Is there a red star?",
        "fsr": {"budget": 16, "method": "fsr", "options": {"rho": 0.7}, "spread": "even", "explain": True},
        "features": True,
        "format": "json",
    }
    made = json_mutants(body, [None, *TEXTS, *WHOLE, *WRONG[URL]], some(form, COMPRESS), seed=5)
    inputs = [Input(where="POST /v1/compress", data=data, what=what) for what, data in made]

    def attack():
        outcomes = attackers(post_all, gateway.http, inputs, key=HOSTILE, at_once=4)
        counts = check_outcomes(outcomes, {"200", "400", "404"})
        assert counts["400"] > len(inputs) / 4

    beside(attack, once=True)


def paths(count: int) -> Iterator[Input]:
    """Routes that exist and routes that almost do, by every method, with and without a body."""
    chance = random.Random(9)
    known = ("/", "/v1/models", "/v1/models/fsr-tiny", "/health", "/ready", "/docs", "/openapi.json", "/docs/start.js")
    known += ("/page/app.js", "/page/config.json", "/docs/files/swagger-ui.css", "/v1/chat/completions", "/v1/compress")
    tails = (
        "",
        "",
        "",
        "/",
        "//",
        "/..",
        "/../../etc/passwd",
        "%00",
        "%2e%2e%2f",
        "?a=b",
        "?" + "q" * 5000,
        "/\\",
        ";x",
        "%ff",
    )
    names = (
        "accept",
        "range",
        "if-none-match",
        "x-request-id",
        "host",
        "origin",
        "cookie",
        "content-encoding",
        "expect",
    )
    for _ in range(count):
        method = chance.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"))
        path = chance.choice(known) + chance.choice(tails)
        value = chance.choice(("", "x" * 5000, "gzip", "bytes=0-,0-,0-", "*/*", "null", "100-continue"))
        headers = ((chance.choice(names), value),)
        data = b"" if method in ("GET", "HEAD") else chance.choice((b"", b"{}", b"[1, 2]", chance.randbytes(300)))
        yield Input(where=f"{method} {path}", data=data, headers=headers, what=f"{method} {path} {headers}")


def test_odd_paths_and_headers_end_as_they_may(form, gateway, attackers, beside):
    inputs = list(paths(some(form, PATHS)))
    allowed = {"200", "206", "304", "400", "404", "405", "413", "414", "415", "416", "417"}

    def attack():
        outcomes = attackers(post_all, gateway.http, inputs, key=HOSTILE, at_once=4)
        bodiless = [one for one in outcomes if one.what.startswith("HEAD")]
        assert {one.code for one in bodiless} <= allowed
        check_outcomes([one for one in outcomes if one not in bodiless], allowed)

    beside(attack, once=True)


def test_bytes_that_are_no_http_are_refused_or_cut(form, gateway, attackers, beside, picture):
    """A valid request with its bytes broken: a response of 4xx, or none; never one of 5xx, and never silence."""

    def attack():
        codes = attackers(broken_http, gateway.http, some(form, BYTES))
        assert codes.keys() <= {"closed", "200", "400", "401", "404", "405", "408", "413", "415", "431"}, codes

    beside(attack, once=True)
