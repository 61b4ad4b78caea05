"""Responses to callers who hang up, or stop reading. The other side of the connection is played by the test."""

import asyncio
import gc
import json
import weakref

import pytest
import structlog

from fsr.common.errors import Expired, Failed, InvalidRequest
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.http.connections.connected_response import ConnectedResponse
from fsr.gateway.http.connections.event_stream import EventStream
from fsr.gateway.http.connections.limits import Limits
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.gateway.telemetry.metrics import Metrics


class Peer:
    """The server's side of a connection: what the caller got, and whether it has gone or stopped reading."""

    def __init__(self):
        self.messages, self.gone, self.reads = [], asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.aborted = False

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reads.wait()
        self.messages.append(message)

    def abort(self):
        self.aborted = True

    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages).decode()


async def test_work_when_the_caller_hangs_up_ends_at_once():
    peer, ended = Peer(), asyncio.Event()

    async def work(send):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(ConnectedResponse(work)({}, peer.receive, peer.send))
    await asyncio.sleep(0.01)
    assert not ended.is_set()
    peer.gone.set()
    await running
    assert ended.is_set() and peer.messages == []


async def test_error_before_the_first_message_reaches_the_application():
    async def work(send):
        raise InvalidRequest("model: is odd")

    peer = Peer()
    with pytest.raises(InvalidRequest):
        await ConnectedResponse(work)({}, peer.receive, peer.send)


async def test_work_has_one_context_from_beginning_to_end():
    seen = []

    async def work(send):
        structlog.contextvars.bind_contextvars(request_id="abc")
        for _ in range(3):
            await asyncio.sleep(0)
            await send({"type": "x"})
            seen.append(structlog.contextvars.get_contextvars()["request_id"])

    peer = Peer()
    await ConnectedResponse(work)({}, peer.receive, peer.send)
    assert seen == ["abc"] * 3


async def test_stream_ends_with_done():
    peer = Peer()
    stream = EventStream(peer.send, peer.abort, Deadline(5))
    assert not stream.started
    await stream.event({"text": "ä\n"})
    await stream.done()
    assert peer.body() == 'data: {"text":"ä\\n"}\n\ndata: [DONE]\n\n'
    assert peer.messages[-1]["more_body"] is False
    assert dict(peer.messages[0]["headers"])[b"x-accel-buffering"] == b"no"


@pytest.mark.parametrize(
    ("error", "code"), [(Failed("decoder: failed"), "internal_error"), (KeyError("x"), "internal_error")]
)
async def test_stream_when_it_fails_ends_with_an_error_and_without_done(error, code):
    peer = Peer()
    stream = EventStream(peer.send, peer.abort, Deadline(5))
    await stream.event({})
    await stream.fail(error)
    event = peer.body().split("\n\n")[1]
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == code
    assert "[DONE]" not in peer.body() and peer.messages[-1]["more_body"] is False and not peer.aborted


async def test_reader_who_stops_is_cut_at_the_deadline(monkeypatch):
    monkeypatch.setattr("fsr.gateway.http.connections.event_stream._LAST_SECONDS", 0.0)
    peer = Peer()
    stream = EventStream(peer.send, peer.abort, Deadline(0.05))
    await stream.event({})
    peer.reads.clear()
    with pytest.raises(Expired, match=r"^deadline: has passed before the events were read") as caught:
        await stream.event({})
    await stream.fail(caught.value)
    assert peer.aborted


async def test_reader_who_stops_before_the_error_event_is_cut_too(monkeypatch):
    monkeypatch.setattr("fsr.gateway.http.connections.event_stream._LAST_SECONDS", 0.0)
    peer = Peer()
    stream = EventStream(peer.send, peer.abort, Deadline(0.05))
    await stream.event({})
    peer.reads.clear()
    await stream.fail(Failed("decoder: failed"))
    assert peer.aborted


async def test_body_when_it_is_all_structure_is_refused_before_it_is_complete():
    """A value of two bytes takes fifty or more once it is parsed."""
    metrics, settings, received = Metrics(), GatewaySettings(), []

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def receive():
        received.append(b"[]," * 20_000)
        return {"type": "http.request", "body": received[-1], "more_body": True}

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    peer = Peer()
    await Limits(app, ApiKeys([], None), metrics, settings)(scope, receive, peer.send)
    assert peer.messages[0]["status"] == 400 and len(received) < 5
    assert json.loads(peer.body())["error"]["message"].startswith("body: has more than ")
    refused = {"interface": "http", "rpc": "Generate", "code": "INVALID_ARGUMENT"}
    assert metrics.registry.get_sample_value("fsr_requests_total", refused) == 1


async def test_request_when_it_failed_is_let_go_of_without_the_garbage_collector():
    class Local:
        pass

    watched = []

    async def work(send):
        local = Local()
        watched.append(weakref.ref(local))
        raise InvalidRequest("body: is odd")

    peer = Peer()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            try:
                await ConnectedResponse(work)({}, peer.receive, peer.send)
            except InvalidRequest as error:
                assert str(error) == "body: is odd"
        await asyncio.sleep(0.01)  # the loop lets go of a task a little after its end
        assert len(watched) == 3 and not any(local() is not None for local in watched)
    finally:
        gc.enable()
