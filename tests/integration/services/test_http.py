"""The HTTP interface of a real gateway process: routes, limits, keys, TLS. It needs no replica for that."""

import asyncio
import codecs
import contextlib
import http.client
import json
import signal
import socket
import ssl
import time

import pytest
import trustme
from fastapi.responses import JSONResponse, Response

from fsr.common.errors import Expired
from fsr.gateway.http.connections.connected_response import send_whole
from fsr.gateway.http.connections.event_stream import EventStream
from fsr.gateway.http.schemas.responses import Error, ModelList
from fsr.gateway.http.server import HttpServer
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.telemetry.metrics import Metrics
from helpers.waiting import until

NOWHERE = ("--encoders", "127.0.0.1:9", "--decoders", "127.0.0.1:9")
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
MOST_BYTES = 5000
MOST_BODIES_BYTES = 200_000
KEY = "open-sesame"


class Http:
    """A client of one gateway: a new connection for each request."""

    def __init__(self, port: int, key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.port, self._key, self._tls = port, key, tls

    def connect(self):
        if self._tls:
            return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body=None, **headers: str):
        """Status, headers and the JSON of the response."""
        connection = self.connect()
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        if raw is not None:
            headers.setdefault("content-type", "application/json")
        connection.request(method, path, raw, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(text) if is_json else None

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def start(spawn, free_ports):
    """Starts a gateway; returns a client and the process."""

    def start(*flags: str, **options):
        port = free_ports()
        service = spawn("gateway", *NOWHERE, "--http-port", str(port), *flags)
        return Http(port, **options), service

    return start


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def gateways(start, authority, tmp_path_factory):
    """Three at once: plain with small limits, one with a key and an origin, one with TLS and client certificates."""
    folder = tmp_path_factory.mktemp("certificates")
    server = authority.issue_cert("localhost")
    server.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    server.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    authority.issue_cert("me").configure_cert(trust)
    tls = ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))
    small = ("--http-max-body-bytes", "100000", "--http-max-bodies-bytes", str(MOST_BODIES_BYTES))
    started = {
        "plain": start("--http-max-body-bytes", str(MOST_BYTES), "--http-body-seconds", "1"),
        "keys": start("--api-keys", KEY, "--http-cors-origins", "https://app.test", *small),
        "mutual": start(*tls, "--tls-client-ca", str(folder / "ca.pem"), tls=trust),
    }
    for client, _ in started.values():
        until(client.answers)
    return started


@pytest.fixture
def plain(gateways):
    return gateways["plain"][0]


def answer_on(connection: socket.socket) -> tuple[http.client.HTTPResponse, bytes]:
    """The response on an open connection and its whole body: head and body may come one after the other."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response, response.read()


def error(response):
    """The error of a response, which must be an error object with an id."""
    _, headers, body = response
    assert len(headers["x-request-id"]) == 32
    return Error.model_validate(body).error


def test_health_and_readiness(plain):
    assert plain.ask("GET", "/health")[2] == {"status": "ok"}
    refused = plain.ask("GET", "/ready")
    assert refused[0] == 503 and refused[1]["retry-after"] == "1" and "no model has both" in error(refused).message


def test_models_when_none_answers(plain):
    status, headers, body = plain.ask("GET", "/v1/models")
    assert status == 200 and headers["x-request-id"] and ModelList.model_validate(body).data == []
    refused = plain.ask("GET", "/v1/models/llava-hf%2Fllava")
    assert (
        refused[0] == 404 and error(refused).code == "model_not_found" and "'llava-hf/llava'" in error(refused).message
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/v1/embeddings", 404, "path: is no route"),
        ("GET", "/v1/chat/completions/", 404, "path: is no route"),
        ("POST", "/v1/embeddings", 404, "path: is no route"),
        ("POST", "/v1/models", 405, "http: POST is not allowed here; use GET"),
        ("GET", CHAT, 405, "http: GET is not allowed here; use POST"),
        ("DELETE", "/v1/models", 405, "http: DELETE is not allowed here; use GET"),
    ],
)
def test_wrong_path_or_method_is_an_error_object(plain, method, path, status, says):
    """Whatever the type of its body."""
    refused = plain.ask(method, path, b"x" if method == "POST" else None, **{"content-type": "text/plain"})
    assert refused[0] == status and error(refused).message.startswith(says) and error(refused).param is None


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{", {}, 400, "body: is no JSON"),
        (b"\xff\xfe", {}, 400, "body: is no JSON"),
        (b"[" * 4000, {}, 400, "body: is no JSON"),
        (b"", {"content-type": "application/json"}, 400, "body: is no JSON"),
        (HELLO, {"content-type": "text/plain"}, 415, "content-type: 'text/plain' is not supported"),
        (b"x" * (MOST_BYTES + 1), {}, 413, f"body: is larger than {MOST_BYTES} bytes"),
        (HELLO | {"temperature": 11}, {}, 400, "temperature: 11.0 is outside [0, 10]"),
        (HELLO | {"stop": ["a", ""]}, {}, 400, "stop: holds an empty string"),
        (HELLO | {"fsr": {"timeout": 9999}}, {}, 400, "fsr.timeout: 9999 s are more than 1200 s"),
        ({"messages": []}, {}, 400, "messages: is empty"),
        (codecs.BOM_UTF8 + b'{"messages": []}', {}, 400, "messages: is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, {}, 400, "messages[0].role: the last turn"),
        (HELLO, {}, 503, "model: no replica of any model answers yet"),
        (HELLO | {"stream": True}, {}, 503, "model: no replica of any model answers yet"),
    ],
)
def test_request_when_it_fails_before_an_answer_has_status_and_error_object(plain, body, headers, status, says):
    refused = plain.ask("POST", CHAT, body, **headers)
    assert refused[0] == status and error(refused).message.startswith(says)
    assert refused[1]["content-type"] == "application/json"


def test_compress_names_its_own_fields(plain):
    body = {"images": ["data:image/png;base64,AAAA"], "instruction": "?", "fsr": {"budget": 0}}
    refused = plain.ask("POST", "/v1/compress", body)
    assert refused[0] == 400 and error(refused).param == "fsr.budget"
    refused = plain.ask("POST", "/v1/compress", body | {"images": [{"type": "image_url", "image_url": {"url": "x"}}]})
    assert refused[0] == 400 and error(refused).param == "images[0].image_url.url"
    refused = plain.ask("POST", "/v1/compress", body | {"images": ["x"]})
    assert refused[0] == 400 and error(refused).param == "images[0]"
    refused = plain.ask("POST", "/v1/compress", body | {"instruction": " ", "fsr": {"budget": 3}})
    assert refused[0] == 400 and error(refused).param == "instruction"


def test_body_when_its_chunks_become_too_many_is_refused(plain):
    connection = plain.connect()
    connection.request("POST", CHAT, iter([b"x" * 1000] * 6), {"content-type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_body_when_it_does_not_arrive_is_refused_in_time(plain):
    with socket.create_connection(("127.0.0.1", plain.port), timeout=60) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        response, body = answer_on(connection)
    assert response.status == 408 and b"body: did not arrive within 1 s" in body


def test_bodies_that_arrive_slowly_make_room_for_others(gateways):
    """The first of four does not fit beside the others; what comes after it does."""
    client, service = gateways["keys"]
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    slow = [socket.create_connection(("127.0.0.1", client.port), timeout=60) for _ in range(4)]
    for connection in slow:
        connection.sendall(f"{head}content-length: 100000\r\n\r\n".encode() + b" " * (MOST_BODIES_BYTES // 3 - 2000))
        time.sleep(0.1)
    response, body = answer_on(slow[0])
    assert response.status == 429 and response.headers["retry-after-ms"]
    assert b'"message":"body: arrives while others fill' in body
    assert Http(client.port, KEY).ask("POST", CHAT, {"messages": []})[0] == 400
    assert service.metric("fsr_admission_refused_total", reason="bodies") == 1
    for connection in slow:
        connection.close()


def test_head_when_it_is_too_large_or_no_http_is_refused(plain):
    for head, status in ((b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000, 431), (b"\x16\x03\x01 hello\r\n\r\n", 400)):
        with socket.create_connection(("127.0.0.1", plain.port), timeout=60) as connection:
            connection.sendall(head)
            response, body = answer_on(connection)
        assert response.status == status and body.startswith(b'{"error":{"message":"')


def test_requests_are_counted_and_logged_as_those_by_grpc(gateways):
    client, service = gateways["plain"]
    refused = {"interface": "http", "rpc": "Generate", "code": "INVALID_ARGUMENT"}
    before = service.metric("fsr_requests_total", **refused)
    _, headers, _ = client.ask("POST", CHAT, HELLO | {"tools": [{}]})
    _, too_large, _ = client.ask("POST", CHAT, b"x" * (MOST_BYTES + 1))
    assert service.metric("fsr_requests_total", **refused) == before + 2
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == headers["x-request-id"]]
    assert (line["event"], line["interface"], line["rpc"], line["code"]) == (
        "failed",
        "http",
        "Generate",
        refused["code"],
    )
    assert line["reason"].startswith("tools: is not supported")
    (line,) = [line for line in lines if line.get("request_id") == too_large["x-request-id"]]
    assert (line["event"], line["interface"], line["code"]) == ("refused", "http", refused["code"])


def test_key_is_asked_for_before_the_body_is_read(gateways):
    client, service = gateways["keys"]
    refused = {"interface": "http", "rpc": "Generate", "code": "UNAUTHENTICATED"}
    before = service.metric("fsr_requests_total", **refused)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode())
        assert answer_on(connection)[0].status == 401
    for key, says in ((None, "no API key; send"), ("sesame", "the API key is unknown")):
        response = Http(client.port, key).ask("POST", CHAT, HELLO)
        assert response[0] == 401 and response[1]["www-authenticate"] == "Bearer"
        assert says in error(response).message and error(response).code == "invalid_api_key"
    assert service.metric("fsr_requests_total", **refused) == before + 3
    assert Http(client.port, KEY).ask("GET", "/v1/models")[0] == 200
    assert Http(client.port).ask("GET", "/v1/models")[0] == 401
    assert Http(client.port).ask("GET", "/health")[0] == 200


def test_cors_is_for_named_origins_alone(gateways, plain):
    client = gateways["keys"][0]
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.ask("OPTIONS", CHAT, origin="https://app.test", **preflight)
    assert allowed[0] == 200 and allowed[1]["access-control-allow-origin"] == "https://app.test"
    error_of_app = client.ask("POST", CHAT, HELLO, origin="https://app.test")
    assert error_of_app[0] == 401 and error_of_app[1]["access-control-allow-origin"] == "https://app.test"
    assert client.ask("OPTIONS", CHAT, origin="https://other.test", **preflight)[0] == 400
    assert plain.ask("POST", CHAT, HELLO, origin="https://app.test")[1]["access-control-allow-origin"] is None


def test_tls_asks_for_client_certificates(gateways, authority):
    client = gateways["mutual"][0]
    assert client.ask("GET", "/v1/models")[0] == 200
    nobody = ssl.create_default_context()
    authority.configure_trust(nobody)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Http(client.port, tls=nobody).ask("GET", "/health")
    with pytest.raises(ssl.SSLCertVerificationError):
        Http(client.port, tls=ssl.create_default_context()).ask("GET", "/health")


def test_docs_load_everything_from_the_gateway(plain):
    connection = plain.connect()

    def page(path: str) -> tuple[http.client.HTTPResponse, str]:
        connection.request("GET", path)
        response = connection.getresponse()
        return response, response.read().decode(errors="replace")

    response, text = page("/docs")
    assert response.status == 200 and "script-src 'self'" in response.headers["content-security-policy"]
    assert "https://" not in text and "http://" not in text
    for path in [part.split('"')[0] for part in text.split('src="')[1:] + text.split('href="')[1:]]:
        assert page(path)[0].status == 200, path
    connection.close()


def test_openapi_describes_requests_and_responses(plain):
    schema = plain.ask("GET", "/openapi.json")[2]
    chat = schema["paths"][CHAT]["post"]
    assert set(schema["paths"]) >= {CHAT, "/v1/models", "/v1/models/{name}", "/v1/compress", "/health", "/ready"}
    assert chat["security"] == [{}, {"key": []}] and set(chat["responses"]) >= {"200", "400", "401", "429", "503"}
    names = set(schema["components"]["schemas"])
    text = json.dumps(schema)
    used = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert used <= names and {"ChatRequest", "CompressRequest", "ChatAnswer", "ChatChunk"} <= used
    for example in chat["requestBody"]["content"]["application/json"]["examples"].values():
        assert plain.ask("POST", CHAT, example["value"])[0] == 503  # a right request; there is no replica


def test_port_in_use_is_one_clear_line(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, service = start("--http-port", str(taken.getsockname()[1]))
        assert service.end(0) == 1
    last = service.log.read_text().splitlines()[-1]
    assert last.startswith("error: --http-port: cannot listen on 127.0.0.1:") and "in use" in last


@pytest.mark.parametrize("origin", ["app.test", "https://app.test/page", "ftp://app.test"])
def test_origin_when_it_is_none_is_one_clear_line(start, origin):
    _, service = start("--http-cors-origins", origin)
    assert service.end(0) == 1
    assert f"--http-cors-origins: '{origin}' is no origin; write https://host" in service.log.read_text()


def test_idle_connection_ends_when_the_gateway_stops(start):
    client, service = start("--drain-seconds", "5")
    until(client.answers)
    connection = client.connect()
    connection.request("GET", "/health")
    connection.getresponse().read()
    began = time.monotonic()
    assert service.end(signal.SIGTERM) == 0
    assert connection.sock.recv(1) == b"" and time.monotonic() - began < 60
    connection.close()
    assert "Traceback" not in service.log.read_text()


async def test_events_do_not_wait_for_the_readers_acknowledgement():
    delays = []

    async def answer(scope, receive, send):
        transport = scope["state"]["abort"].__self__
        delays.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    server = HttpServer(answer, Metrics(), GatewaySettings(), 0)
    await server.start()
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    await server.stop()
    assert len(delays) == 1 and delays[0] != 0


async def test_reader_who_stops_reading_loses_the_connection_at_the_deadline():
    """The server alone, with an answer that never ends: buffers of sockets take more than an answer of the model."""
    cut = asyncio.Event()

    async def answer(scope, receive, send):
        stream = EventStream(send, scope["state"]["abort"], Deadline(0.5))
        try:
            while True:
                await stream.event({"text": "x" * 100_000})
        except Expired as error:
            await stream.fail(error)
            cut.set()

    server = HttpServer(answer, Metrics(), GatewaySettings(), 0)
    await server.start()
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(60):
        await cut.wait()
        await server.stop()
        received = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    assert received.startswith(b"HTTP/1.1 200 OK") and not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [1, 50])
async def test_reader_who_does_not_read_to_the_end_loses_the_connection(pieces):
    """The server alone: the answer is complete, or goes on, while more than the sockets take is unsent."""
    metrics = Metrics()

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": bytes(20_000_000 // pieces), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    server = HttpServer(answer, metrics, GatewaySettings(stall_seconds=0.3), 0)
    await server.start()
    host, port = server.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    async with asyncio.timeout(60):
        await server.stop()  # waits for every connection
        with contextlib.suppress(ConnectionResetError):  # or the end, if the system had sent all that it held
            while data := await reader.read(2**20):
                received += len(data)
    assert received < 20_000_000
    assert metrics.registry.get_sample_value("fsr_slow_readers_total", {"interface": "http"}) == 1
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_reader_who_takes_a_little_now_and_then_keeps_the_connection():
    body = bytes(6_000_000)

    async def answer(scope, receive, send):
        await send_whole(Response(body), send)

    server = HttpServer(answer, Metrics(), GatewaySettings(stall_seconds=1), 0)
    await server.start()
    host, port = server.address.split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**18)  # with a large one the system reads for us
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**16)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    received = 0
    while len(piece := await reader.read(2**17)):
        received += len(piece)
        await asyncio.sleep(0.3 if received < 10 * 2**17 else 0)
    assert received == len(body)
    writer.close()
    await writer.wait_closed()
    await server.stop()


async def test_second_request_on_the_connection_does_not_let_a_reader_wait_on():
    """Its head resets the time for the head, and no other."""
    ended = asyncio.Event()

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(10**6), "more_body": True})
        ended.set()

    server = HttpServer(answer, Metrics(), GatewaySettings(stall_seconds=0.5), 0)
    await server.start()
    host, port = server.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=2**16)
    async with asyncio.timeout(60):
        while not ended.is_set():  # the server drops what is sent to nobody
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                await writer.drain()
            await asyncio.sleep(0.2)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    await server.stop()


async def test_connection_beyond_the_most_gets_an_error_object(monkeypatch):
    monkeypatch.setattr("fsr.gateway.http.connections.protocol._MOST_CONNECTIONS", 1)

    async def answer(scope, receive, send):
        await JSONResponse({})(scope, receive, send)

    server = HttpServer(answer, Metrics(), GatewaySettings(), 0)
    await server.start()
    host, port = server.address.split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    answers = []
    for reader, writer in connections:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answers.append(await reader.read(-1))
        writer.close()
        await writer.wait_closed()
    await server.stop()
    assert answers[0].startswith(b"HTTP/1.1 200")
    head, _, body = answers[1].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1\r\n" in head and b"x-request-id: " in head
    assert json.loads(body)["error"]["message"].startswith("http: 1 connections are open")
