"""What the bytes of a request may cost, before anybody knows what they say."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.hostile.callers import Input, call_all, post_all
from helpers.hostile.good_requests import (
    compress_request,
    decode_request,
    generate_request,
    options_of_empty_values,
)
from helpers.hostile.http2 import resets, unfinished
from helpers.hostile.keys import ANOTHER, HOSTILE
from helpers.hostile.outcomes import check_outcomes

MOST_MEMORY = 150  # MiB that the messages of a caller may cost the gateway at a time
FOUR_TIMES = 240  # the same for one of 60 MiB on the wire: gRPC has it three times before anybody sees it
MOST_KEPT = 60  # MiB that the allocator may keep for later
REFUSED = {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
LINE, NEIGHBOUR_LINES = 4096, 2**20  # most bytes of a log line, and of all lines about the neighbour's requests
COMPRESSED = {"UNIMPLEMENTED"}  # where a service takes no compressed messages
UNKNOWN_CALLER = REFUSED | {"UNAUTHENTICATED"}
# Repeated fields of a request with empty messages in them: two bytes each on the wire, a hundred in memory.
EMPTY = {"messages": b"\x12\0", "images": b"\x1a\0", "fields that nobody knows": b"\xf2\x01\0"}


@pytest.mark.parametrize("key", [HOSTILE, None])
@pytest.mark.parametrize("gzip", [True, False])
def test_empty_messages_without_number_are_refused_and_nothing_of_them_is_kept(
    form, gateway, attackers, beside, gzip, key
):
    """60 MiB of which protobuf would make more than a GiB; as gzip they have 60 KiB."""
    bombs = [
        Input(where="Generate", data=empty * (form.of(16, 60) * 2**20 // len(empty)), gzip=gzip, what=field)
        for field, empty in form.of(list(EMPTY.items())[:1], EMPTY.items())
    ]
    before = gateway.footprint.memory

    def attack():
        outcomes = attackers(call_all, gateway.address, bombs, key=key, at_once=1)
        check_outcomes(outcomes, COMPRESSED | (REFUSED if key else UNKNOWN_CALLER))
        assert gateway.footprint.peak < before + (MOST_MEMORY if gzip else FOUR_TIMES)

    beside(attack)
    for _ in range(form.of(1, 2)):
        attack()
    assert gateway.footprint.memory < before + MOST_KEPT


def test_unfinished_messages_without_a_key_take_little_memory(form, gateway, attackers, beside):
    """Each connection sends all but the last byte."""
    began, peaks = gateway.footprint.memory, []

    def attack():
        check_outcomes(attackers(unfinished, gateway.address, 8, form.of(8, 60)), {*UNKNOWN_CALLER, "OPEN", "CLOSED"})
        peaks.append(gateway.footprint.peak)

    beside(attack)
    assert max(peaks) < began + form.of(40, MOST_MEMORY)


@pytest.mark.parametrize("rpc", ["Generate", "Compress"])
def test_option_of_empty_values_is_refused_by_the_gateway(form, gateway, services, attackers, beside, picture, rpc):
    request = generate_request(picture) if rpc == "Generate" else compress_request(picture)
    data = options_of_empty_values(request, form.of(4, 50)).SerializeToString()
    inputs = [Input(where=rpc, data=data, what="an option")]
    encoder = [services["encoder"], services["proxy"]]

    def attack():
        before = sum(process.cpu_seconds() for process in encoder)
        check_outcomes(attackers(call_all, gateway.address, inputs, key=HOSTILE), REFUSED)
        assert form.whole or sum(process.cpu_seconds() for process in encoder) < before + 1

    beside(attack)


def requests_with_long_texts(picture, size):
    """Each text of a caller, with many characters: plain ones, those of two bytes, and those that a log escapes."""
    for name in ("m" * size, "ü" * 5000, "ü" * (size // 2), "\x01" * size):
        for field in ("model", "method.name", "option's name", "option", "stop"):
            request = generate_request(picture)
            if field == "model":
                request.model = name
            elif field == "method.name":
                request.method.name = name
            elif field == "option's name":
                request.method.options[name] = 1
            elif field == "option":
                request.method.options["relevance_sign"] = name
            else:
                request.sampling.stop.append(name)
            yield Input(where="Generate", data=request.SerializeToString(), what=f"{field} of {len(name)} {name[0]!r}")


@pytest.fixture
def logged(gateway):
    """How many bytes the gateway's log has grown since."""
    before = gateway.log.stat().st_size
    return lambda: gateway.log.stat().st_size - before


def test_long_texts_are_refused_in_few_words(form, gateway, attackers, beside, picture, logged):
    """The caller gets few, and so does the log."""
    inputs = list(requests_with_long_texts(picture, form.of(1, 20) * 2**20))
    waves = []

    def attack():
        outcomes = attackers(call_all, gateway.address, inputs, key=HOSTILE, at_once=1)
        waves.append(check_outcomes(outcomes, {*REFUSED, "NOT_FOUND"}))

    before = gateway.footprint.memory
    beside(attack)
    assert gateway.footprint.memory < before + MOST_KEPT
    assert logged() < len(waves) * len(inputs) * LINE + NEIGHBOUR_LINES


def test_long_texts_by_http_are_refused_in_few_words(form, gateway, attackers, beside, logged):
    mib = form.of(1, 20) * 2**20
    bodies = [
        b'{"messages": [{"role": "user", "content": "Hello"}], %b}' % field
        for field in (
            b'"model": "%b"' % (b"m" * mib),
            b'"fsr": {"method": "%b"}' % ("ü" * 5000).encode(),
            b'"fsr": {"method": "%b"}' % (b"m" * mib),
            b'"fsr": {"options": {"%b": 1}}' % (b"m" * mib),
            b'"fsr": {"options": {"alpha": [%b 1]}}' % (b"null," * (mib // 5)),
            b'"fsr": {"options": {"alpha": %b1%b}}' % (b"[" * 60, b"]" * 60),
            b'"stop": ["%b"]' % (b"m" * mib),
            b'"%b": 1' % (b"m" * mib),
        )
    ]
    inputs = [
        *(Input(where="POST /v1/chat/completions", data=body, what=f"{body[50:90]!r}") for body in bodies),
        Input(where="GET /v1/models/" + "m" * 30_000, data=b"", what="model in the path"),
        Input(where="GET /" + "p" * 30_000, data=b"", what="path"),
        Input(where="GET /health", data=b"", headers=(("x-request-id", "i" * 30_000),), what="id"),
        Input(where="POST /v1/compress", data=b"{}", headers=(("Content-Type", "t" * 30_000),), what="type"),
    ]
    waves = []

    def attack():
        outcomes = attackers(post_all, gateway.http, inputs, key=HOSTILE, at_once=2)
        waves.append(check_outcomes(outcomes, {"200", "400", "404", "413", "414", "415", "431"}))

    beside(attack)
    assert logged() < len(waves) * len(inputs) * LINE + NEIGHBOUR_LINES


@pytest.mark.parametrize("body", ["headers alone", "whole requests"])
def test_requests_reset_at_once_disturb_nobody(form, gateway, attackers, beside, picture, body):
    """Rapid reset on a connection of its own. Then 32 longer answers of others go on meanwhile, and all end well."""
    request = generate_request(picture[:40]).SerializeToString() if body == "whole requests" else b""
    long = generate_request(picture, max_tokens=form.of(40, 200), ignore_eos=True).SerializeToString()
    others = [Input(where="Generate", data=long, what="a long answer")] * form.of(8, 32)

    def attack():
        attackers(resets, gateway.address, form.of(1000, 30_000), body=request, key=HOSTILE if request else None)

    def attack_beside_others():
        with ThreadPoolExecutor(1) as thread:
            answers = thread.submit(call_all, gateway.address, others, key=ANOTHER, timeout=600)
            attack()
            check_outcomes(answers.result(), {"OK"})

    beside(attack, timed=not request)  # whole requests are work, until they are reset
    beside(attack_beside_others, once=True, timed=False)


@pytest.fixture(scope="module")
def decoding(system, picture):
    return decode_request(system["encoder"], picture)


def test_emitted_tokens_without_number_are_refused_by_a_decoder(form, system, services, attackers, decoding):
    decoding.emitted_token_ids[:] = [1] * (form.of(4, 30) * 2**20)
    hostile = Input(where="Decode", data=decoding.SerializeToString(), what="emitted tokens")
    describe = Input(where="DescribeDecoder", data=b"", what="beside")
    address = system["decoder-0"]
    before = services["decoder-0"].cpu_seconds()
    check_outcomes(attackers(call_all, address, [hostile], key=None), REFUSED)
    check_outcomes(attackers(call_all, address, [describe]), {"OK"})
    assert services["decoder-0"].cpu_seconds() < before + 2


@pytest.mark.parametrize(
    ("service", "rpc"),
    [
        ("gateway", "Generate"),
        ("gateway", "Compress"),
        ("gateway", "ListModels"),
        ("encoder", "Encode"),
        ("encoder", "DescribeEncoder"),
        ("decoder-0", "Decode"),
        ("decoder-0", "DescribeDecoder"),
    ],
)
def test_bytes_that_are_no_message_are_an_invalid_argument(gateway, system, attackers, service, rpc):
    """Counted and logged as any other refusal."""
    broken = (b"\xff", b"\x0a\x05ab", b"\x0b" * 1000, b"\x0a\x03\xff\xfe\x80", b"\x00", b"\x12\xff\xff\xff\xff\x7f")
    inputs = [Input(where=rpc, data=data, what=repr(data[:10])) for data in broken]
    address = gateway.address if service == "gateway" else system[service]
    if service == "gateway":
        before = gateway.metric("fsr_requests_total", rpc=rpc, code="INVALID_ARGUMENT")
    outcomes = attackers(call_all, address, inputs, key=HOSTILE)
    counts = check_outcomes(outcomes, {"INVALID_ARGUMENT", "OK"})  # a parser may skip what it does not know
    assert counts["INVALID_ARGUMENT"] >= 4
    if service == "gateway":
        after = gateway.metric("fsr_requests_total", rpc=rpc, code="INVALID_ARGUMENT")
        assert after == before + counts["INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    ("service", "rpc", "empty"), [("encoder", "Encode", b"\x12\0"), ("decoder-0", "Decode", b"\x1a\0")]
)
def test_empty_messages_without_number_at_a_replica_are_refused_and_not_kept(
    form, system, services, attackers, service, rpc, empty
):
    """Ray's proxy reads the bytes; the replica would make a message of them."""
    bombs = [Input(where=rpc, data=empty * (form.of(10, 30) * 2**20), gzip=gzip, what="bomb") for gzip in (True, False)]
    most = {service: 2 * MOST_MEMORY} | ({"proxy": 3 * MOST_MEMORY} if service == "encoder" else {})
    before = {name: services[name].memory for name in most}
    for name in most:
        services[name].reset_peak()
    check_outcomes(attackers(call_all, system[service], bombs, at_once=1), REFUSED | COMPRESSED)
    for name, bound in most.items():
        assert services[name].peak < before[name] + bound
        assert services[name].memory < before[name] + MOST_MEMORY


def test_unknown_rpcs_and_encodings_are_unimplemented(gateway, system, attackers):
    inputs = [
        Input(where="/fsr.v1.GatewayService/Missing", data=b"", what="rpc"),
        Input(where="/missing/Missing", data=b"", what="service"),
        Input(where="/" + "x" * 6000, data=b"", what="long path"),
    ]
    for address in (gateway.address, system["decoder-0"]):
        check_outcomes(attackers(call_all, address, inputs, key=HOSTILE), {"UNIMPLEMENTED", "UNAUTHENTICATED"})
