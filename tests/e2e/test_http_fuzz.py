"""Malformed requests by HTTP, slow ones, and readers that stop: the gateway refuses them, and stays as it was."""

import asyncio
import contextlib
import io
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpcore2
import openai
import psutil
import pytest
from PIL import Image

from helpers.chat import messages
from helpers.malformed import good_body, malformed
from helpers.waiting import until

BODY_SECONDS = 1.0
JSON = {"Content-Type": "application/json"}
LONG = {"max_tokens": 20_000, "ignore_eos": True, "stream": True, "logprobs": True, "top_logprobs": 20}


@pytest.fixture(scope="module")
def gateway(system, spawn, free_ports):
    decoders = ",".join(system[f"decoder-{number}"] for number in range(2))
    port = free_ports()
    flags = ("--encoders", system["encoder"], "--decoders", decoders, "--http-port", str(port))
    service = spawn("gateway", *flags, "--http-body-seconds", str(BODY_SECONDS))
    service.wait_until_serving()
    service.http = ("127.0.0.1", port)
    service.process = psutil.Process(service._process.pid)
    return service


@pytest.fixture(scope="module")
def picture(pictures):
    """A small one, which is in every body."""
    out = io.BytesIO()
    Image.open(io.BytesIO(pictures(600, 1)[0])).resize((48, 48)).save(out, "PNG")
    return out.getvalue()


@contextlib.asynccontextmanager
async def neighbour(gateway, picture):
    """A caller who asks the same question all the time; yields the list of its answers."""
    answers, over = [], False

    async def ask_on():
        url = "http://{}:{}/v1".format(*gateway.http)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
            while not over:
                answer = await client.chat.completions.create(
                    model="fsr-tiny",
                    messages=messages("What colour is the star?", picture),
                    max_tokens=12,
                    extra_body={"fsr": {"budget": 16}, "ignore_eos": True},
                )
                answers.append(answer.choices[0].message.content)
                await asyncio.sleep(0.05)

    task = asyncio.create_task(ask_on())
    try:
        while not answers and not task.done():
            await asyncio.sleep(0.01)
        yield answers
    finally:
        over = True
        await task


def check_error(status, headers, body):
    """What every refusal is: a 4xx with an error object that names the field or the remedy, and is not long."""
    assert 400 <= status < 500, (status, body)
    error = json.loads(body)["error"]
    assert error["type"] in ("invalid_request_error", "not_found_error") and error["message"] and len(body) < 2000
    assert error["param"] or ";" in error["message"], error
    assert headers[b"content-type"].startswith(b"application/json")


def settled(gateway):
    """Whether no request and no connection is left."""
    with contextlib.suppress(psutil.Error):
        connections = [c for c in gateway.process.net_connections() if c.laddr.port == gateway.http[1]]
        return gateway.metric("fsr_requests_in_flight") == 0 and len(connections) == 1  # the one that listens


async def test_malformed_bodies_are_refused_by_name_and_leave_nothing_behind(gateway, picture):
    bodies = malformed(picture, 2000)
    assert len(bodies) == 2000

    async def post(pool, body):
        response = await pool.request(
            "POST", "http://{}:{}/v1/chat/completions".format(*gateway.http), headers=JSON, content=body
        )
        try:
            check_error(response.status, {k.lower(): v for k, v in response.headers}, response.content)
        except (AssertionError, ValueError, KeyError) as error:
            return f"{body[:300]!r}: {response.status} {response.content[:300]!r} ({type(error).__name__})"

    async with neighbour(gateway, picture) as answers:
        for some in (bodies[:200], bodies):  # the first ones fill caches and pools
            before = gateway.process.num_fds(), gateway.process.memory_info().rss
            async with httpcore2.AsyncConnectionPool(max_connections=8) as pool:
                faults = [fault for fault in await asyncio.gather(*(post(pool, body) for body in some)) if fault]
            assert not faults, "\n".join(faults[:20])
        assert len(answers) >= 5 and len(set(answers)) == 1
    await asyncio.to_thread(until, lambda: settled(gateway))
    files, memory = gateway.process.num_fds(), gateway.process.memory_info().rss
    assert files <= before[0] + 4 and memory <= before[1] + 64 * 2**20
    codes = {"interface": "http", "rpc": "Generate"}
    assert gateway.metric("fsr_requests_total", code="INTERNAL", **codes) == 0


def exchange(gateway, *pieces, pause=0.0, wait=60.0):
    """What the gateway sends back to these bytes, until it closes the connection; the pieces come one by one."""
    with socket.create_connection(gateway.http, timeout=wait) as connection:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
    return received


def head(*lines, request="POST /v1/chat/completions HTTP/1.1"):
    return "\r\n".join([request, "Host: gateway", "Content-Type: application/json", *lines, "", ""]).encode("latin-1")


def parted(response):
    """Status, headers and body of a response without chunks."""
    first, _, rest = response.partition(b"\r\n")
    lines, _, body = rest.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines.split(b"\r\n") if line)
    return int(first.split()[1]), headers, body


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\r\n\r\n\x00"],
        [b"hello\r\n\r\n"],
        [b"POST\r\n\r\n"],
        [b"GET /health HTTP/9.9\r\n\r\n"],
        [b"POST /v1/chat/completions HTTP/1.1\r\nHost gateway\r\n\r\n"],
        [head("Content-Length: x")],
        [head("Content-Length: -1")],
        [head("Content-Length: 99999999999999999999999999")],
        [head("Content-Length: 5", "Content-Length: 6"), b"hello!"],
        [head("Content-Length: 5", "Transfer-Encoding: chunked"), b"0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"x\r\n{}\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"-2\r\n{}\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"2\r\n{}{}{}\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: chunked"), b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n"],
        [head("Transfer-Encoding: gzip"), b"{}"],
        [head("Bad Name: 1"), b"{}"],
        [head("A: \x00"), b"{}"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64)],  # TLS
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ],
)
def test_broken_http_is_a_bad_request_and_ends_the_connection(gateway, pieces):
    status, _, body = parted(exchange(gateway, *pieces))
    assert 400 <= status < 500 and body


def test_flood_of_headers_is_refused_before_it_takes_memory(gateway):
    before = gateway.process.memory_info().rss
    for flood in (
        [head()[:-2], *[b"X-%d: %b\r\n" % (i, b"x" * 1000) for i in range(60_000)]],
        [head()[:-2] + b"X: ", *[b"x" * 65536] * 1000],
        [b"GET /", *[b"x" * 65536] * 1000],
    ):
        response = exchange(gateway, *flood)
        assert not response or 400 <= parted(response)[0] < 500
    assert gateway.process.memory_info().rss < before + 32 * 2**20
    until(lambda: settled(gateway))


@pytest.mark.parametrize(
    ("request_line", "lines", "status"),
    [
        ("GET /v1/chat/completions HTTP/1.1", (), 405),
        ("PUT /v1/chat/completions HTTP/1.1", (), 405),
        ("POST /v1/completions HTTP/1.1", ("Content-Length: 2",), 404),
        ("POST /v1/../v1/chat HTTP/1.1", ("Content-Length: 2",), 404),
        ("GET /v1/models/%00 HTTP/1.1", (), 404),
        ("GET /v1/models/..%2f..%2fetc HTTP/1.1", (), 404),
    ],
)
def test_wrong_place_is_an_error_object_too(gateway, request_line, lines, status):
    response = parted(exchange(gateway, head("Connection: close", *lines, request=request_line), b"{}"))
    assert response[0] == status
    check_error(*response)


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""])
def test_body_of_another_type_is_refused(gateway, picture, content_type):
    """A page of another origin may send such a type without asking first, so it must not be taken for JSON."""
    body = json.dumps(good_body(picture)).encode()
    lines = [f"Content-Length: {len(body)}", "Connection: close"]
    request = head(*lines).replace(
        b"Content-Type: application/json\r\n", b"Content-Type: %b\r\n" % content_type.encode()
    )
    response = parted(exchange(gateway, request, body))
    check_error(*response)
    assert b"application/json" in response[2]


def test_slow_requests_are_left(gateway):
    """All at once: nothing, half of a head, and bodies that never end, which get a response."""
    heads = [[], [head()[:40]]]
    bodies = [
        [head("Content-Length: 1000")],
        [head("Content-Length: 1000"), b'{"model":'],
        [head("Transfer-Encoding: chunked"), b'5\r\n{"mo'],
        [head("Content-Length: 1000"), *[b"x"] * 100],
    ]
    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        responses = list(threads.map(lambda pieces: exchange(gateway, *pieces, pause=0.1), heads + bodies))
    assert time.monotonic() - began < 30 and not responses[0]
    for response in responses[1:]:
        status, headers, body = parted(response)
        assert status == 408
        check_error(status, headers, body)
    until(lambda: settled(gateway))


def test_readers_who_stop_are_left_at_their_deadline(gateway, picture):
    """Their slots are free then, in the gateway and in the decoders."""
    body = json.dumps(good_body(picture) | LONG | {"fsr": {"budget": 16, "timeout": 3}}).encode()
    readers = []
    for _ in range(5):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(gateway.http)
        reader.sendall(head(f"Content-Length: {len(body)}") + body)
        readers.append(reader)
    for reader in readers:
        assert reader.recv(12) == b"HTTP/1.1 200"
    assert gateway.metric("fsr_requests_in_flight") == 5
    until(lambda: gateway.metric("fsr_requests_in_flight") == 0)
    assert gateway.metric("fsr_requests_total", code="DEADLINE_EXCEEDED", rpc="Generate", interface="http") >= 5
    for reader in readers:
        reader.close()
    until(lambda: settled(gateway))
