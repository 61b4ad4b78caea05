"""Callers who hold what others need: slots, connections, memory for bodies.

Requests that are admitted and answered take their time beside others'. So where a key asks for as much as it can, only
answers are compared, and the times are reported.
"""

import json

import pytest

from helpers.chat import messages
from helpers.hostile.callers import Input, call_all, post_all
from helpers.hostile.good_requests import generate_request
from helpers.hostile.http1 import idle, unfinished_http, unread_http
from helpers.hostile.http2 import unread
from helpers.hostile.keys import HOSTILE, UNBOUNDED
from helpers.hostile.outcomes import check_outcomes
from helpers.waiting import until

CONNECTIONS = 6  # a gateway takes 100 calls at a time on each
MOST_MEMORY = 150  # MiB
MOST_BODIES = 1.5 * 256  # MiB of bodies that arrive (--http-max-bodies-bytes), in buffers that grow
LONGEST_HINT = 30_000  # milliseconds
LONG = {"max_tokens": 20_000, "ignore_eos": True}


def chat_body(picture, **fields):
    body = {"model": "fsr-tiny", "messages": messages("Is there a red star?", picture), "fsr": {"budget": 16}}
    return json.dumps(body | fields).encode()


@pytest.mark.parametrize("key", [UNBOUNDED, pytest.param(HOSTILE, marks=pytest.mark.cluster)])
def test_readers_who_never_read_are_cut(gateway, slots, attackers, beside, picture, key):
    """Their flow-control window stays shut. They lose their slots long before their deadline of 1000 s."""
    body = generate_request(picture, max_tokens=8, ignore_eos=True).SerializeToString()

    def attack():
        outcomes = attackers(unread, gateway.address, slots, body, key=key, seconds=30)
        assert not [outcome for outcome in outcomes if outcome.code in ("OK", "OPEN")]

    beside(attack, timed=key == HOSTILE)
    until(lambda: gateway.metric("fsr_requests_in_flight") == 0, 30)


@pytest.mark.cluster
def test_readers_who_never_read_by_http_are_cut(gateway, attackers, beside, picture):
    """All of their connections end. What the system's own buffers take, megabytes of events, is generated before."""
    body = chat_body(picture, stream=True, logprobs=True, top_logprobs=20, **LONG)

    def attack():
        assert attackers(unread_http, gateway.http, 8, body, HOSTILE, 90) == 8

    beside(attack, once=True)
    until(lambda: gateway.metric("fsr_requests_in_flight") == 0, 30)


@pytest.mark.parametrize("interface", ["grpc", "http"])
def test_one_key_does_not_take_the_room_of_others(form, gateway, slots, attackers, beside, picture, interface):
    """Of three times as many requests as there are slots some are refused, with a hint when to ask again."""
    count, tokens = 3 * slots, form.of(30, 300)
    if interface == "grpc":
        data = generate_request(picture, max_tokens=tokens, ignore_eos=True).SerializeToString()
        send, address, inputs = call_all, gateway.address, [Input(where="Generate", data=data)] * count
        full, hint, options = "RESOURCE_EXHAUSTED", "retry-after-ms", {"connections": CONNECTIONS}
    else:
        data = chat_body(picture, max_tokens=tokens, ignore_eos=True)
        inputs = [Input(where="POST /v1/chat/completions", data=data)] * count
        send, address, full, hint, options = post_all, gateway.http, "429", "retry-after", {}

    def attack():
        outcomes = attackers(send, address, inputs, key=UNBOUNDED, at_once=count, timeout=600, **options)
        counts = check_outcomes(outcomes, {"OK", "200", full})
        assert counts[full] and counts.total() > counts[full]
        assert all(hint in outcome.trailers for outcome in outcomes if outcome.code == full)

    beside(attack, timed=False)


def test_hints_to_retry_grow_with_the_load(gateway, slots, attackers, picture):
    long = generate_request(picture, max_tokens=100, ignore_eos=True)  # none ends before all are there
    data = long.SerializeToString()

    def hints(count):
        inputs = [Input(where="Generate", data=data)] * count
        options = {"at_once": count, "connections": CONNECTIONS}
        outcomes = attackers(call_all, gateway.address, inputs, key=UNBOUNDED, **options)
        return [int(one.trailers["retry-after-ms"]) for one in outcomes if one.code == "RESOURCE_EXHAUSTED"]

    few, many = hints(2 * slots + 8), hints(6 * slots)
    assert max(many) > min(few) > 0 or min(few) == LONGEST_HINT


def test_connections_that_say_nothing_keep_nobody_out(form, gateway, attackers, beside):
    def attack():
        attackers(idle, [gateway.address, gateway.http], form.of(100, 1500), form.of(1, 5))

    beside(attack)


@pytest.mark.parametrize("key", [pytest.param(HOSTILE, marks=pytest.mark.cluster), None])
def test_bodies_that_never_end_take_little_memory(form, gateway, attackers, beside, key):
    """Without a key nothing is read of them; with one, all of them together have a bound."""
    before, peaks = gateway.footprint.memory, []

    def attack():
        codes = attackers(unfinished_http, gateway.http, 8, form.of(6, 60), key, 1.0)
        assert codes.keys() <= ({"open", "closed", "408", "413", "429"} if key else {"401", "closed"})
        peaks.append(gateway.footprint.peak)

    beside(attack)
    assert max(peaks) < before + (MOST_BODIES if key else form.of(30, MOST_MEMORY))
