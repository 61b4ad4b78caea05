"""What the clients do when a gateway fails. The gateways here fail on purpose, at a place that each test chooses."""

import time
from dataclasses import dataclass, field

import grpc
import pytest

from fsr.client import (
    AsyncClient,
    DeadlineExceeded,
    FailedPreconditionError,
    InvalidRequestError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from fsr.v1 import decoder_pb2, gateway_pb2, gateway_pb2_grpc, types_pb2

Code = grpc.StatusCode
TOKENS = list(range(10, 20))
TEXT = "".join(f"<{token}>" for token in TOKENS)
OURS = (("fsr-request-id", "r"),)
REQUEST = gateway_pb2.GenerateRequest(
    messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="?")])],
    sampling=types_pb2.Sampling(seed=7),
    explain=True,
)


@dataclass
class Failure:
    """`after` so many tokens of a stream. With `ours` the gateway says so itself; else gRPC would, in these words."""

    after: int
    code: Code = Code.UNAVAILABLE
    ours: bool = False
    hint: int | None = None  # milliseconds
    says: str = "Socket closed"


UNREACHABLE = Failure(0, says="failed to connect to all addresses; last error: refused")


@dataclass
class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers with TOKENS. Each call takes the next failure; without one it succeeds."""

    failures: list[Failure] = field(default_factory=list)
    fingerprint: str = "f"  # empty: a version that does not know `resume`
    requests: list = field(default_factory=list)

    async def Generate(self, request, context):
        self.requests.append(request)
        failure = self.failures.pop(0) if self.failures else Failure(after=99)
        begin = len(request.resume.token_ids) if self.fingerprint else 0
        for number, token in enumerate(TOKENS[begin:]):
            if number == failure.after:
                await self._fail(failure, context)
            message = gateway_pb2.GenerateResponse(text=f"<{token}>", token_ids=[token])
            if number == 0:
                message.fingerprint = self.fingerprint
                message.images.extend([types_pb2.CompressedImage(index=[0])] * request.explain)
            if token == TOKENS[-1]:
                message.finish_reason = decoder_pb2.FINISH_REASON_STOP
                message.usage.completion_tokens = len(TOKENS)
            yield message
        if failure.after == len(TOKENS):
            await self._fail(failure, context)

    async def ListModels(self, request, context):
        if self.failures:
            await self._fail(self.failures.pop(0), context)
        return gateway_pb2.ListModelsResponse(models=[gateway_pb2.AvailableModel(model="m")])

    async def _fail(self, failure, context):
        hint = (("retry-after-ms", str(failure.hint)),) if failure.hint else ()
        await context.abort(failure.code, failure.says, OURS * failure.ours + hint)


@pytest.fixture
async def client():
    """Makes a client of these gateways."""
    servers, clients = [], []

    async def make(*gateways, **options):
        addresses = []
        for gateway in gateways:
            server = grpc.aio.server()
            gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            servers.append(server)
        clients.append(AsyncClient(addresses[0] if len(addresses) == 1 else addresses, **options))
        return clients[-1]

    yield make
    for one in clients:
        await one.close()
    for server in servers:
        await server.stop(None)


async def chunks(client, request=REQUEST, timeout=60):
    """The pieces, and the error that ended them."""
    pieces = []
    try:
        async for chunk in client.generate(request, timeout=timeout):
            pieces.append(chunk)
    except Exception as error:
        return pieces, error
    return pieces, None


def tokens(pieces):
    return [token for piece in pieces for token in piece.token_ids]


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.INTERNAL, Code.CANCELLED, Code.UNKNOWN])
async def test_stream_when_its_gateway_dies_goes_on_at_the_next(client, code):
    first, second = Gateway([Failure(4, code)]), Gateway()
    pieces, error = await chunks(await client(first, second))
    assert error is None and tokens(pieces) == TOKENS and "".join(piece.text for piece in pieces) == TEXT
    assert [piece.resumed for piece in pieces] == [0] * 4 + [1] * 6 and pieces[-1].usage.completion_tokens == 10
    assert sum(len(piece.images) for piece in pieces) == 1
    (again,) = second.requests
    assert again.resume == gateway_pb2.Resume(token_ids=TOKENS[:4], fingerprint="f") and not again.explain
    again.ClearField("resume")
    again.explain = True
    assert again == REQUEST == first.requests[0]


async def test_answers_when_gateways_die_in_turn_are_whole(client):
    """Each stream that brings something is progress, however often they break."""
    gateways = Gateway([Failure(2), Failure(0), Failure(3)]), Gateway([Failure(1), Failure(1), Failure(0)])
    answer = await (await client(*gateways)).ask(b"x", "?", explain=True)
    assert answer.text == TEXT and answer.token_ids == tuple(TOKENS) and answer.resumed >= 3
    assert len(answer.images) == 1


async def test_stream_when_there_is_one_address_goes_on_there(client):
    gateway = Gateway([Failure(4), Failure(0), Failure(0, Code.CANCELLED)])
    pieces, error = await chunks(await client(gateway))
    assert error is None and tokens(pieces) == TOKENS and len(gateway.requests) == 4
    assert pieces[-1].resumed == 1


async def test_follow_up_calls_stay_with_the_gateway_that_works(client):
    first, second = Gateway([Failure(4)]), Gateway()
    one = await client(first, second)
    for _ in range(2):
        await chunks(one)
    assert (len(first.requests), len(second.requests)) == (1, 2)


@pytest.mark.parametrize("at", range(1, 10))
async def test_stream_that_breaks_anywhere_is_resumed_from_there(client, at):
    pieces, error = await chunks(await client(Gateway([Failure(at)]), Gateway()))
    assert error is None and tokens(pieces) == TOKENS


async def test_request_that_resumes_already_keeps_its_tokens(client):
    second = Gateway()
    request = gateway_pb2.GenerateRequest(resume=gateway_pb2.Resume(token_ids=TOKENS[:3], fingerprint="f"))
    pieces, error = await chunks(await client(Gateway([Failure(4)]), second), request)
    assert error is None and tokens(pieces) == TOKENS[3:]
    assert list(second.requests[0].resume.token_ids) == TOKENS[:7] and list(request.resume.token_ids) == TOKENS[:3]


async def test_complete_answer_when_its_gateway_dies_at_once_is_complete(client):
    first, second = Gateway([Failure(len(TOKENS))]), Gateway()
    pieces, error = await chunks(await client(first, second))
    assert error is None and tokens(pieces) == TOKENS and second.requests == []


async def test_gateway_that_is_full_or_shuts_down_is_waited_for(client):
    full = Failure(0, Code.RESOURCE_EXHAUSTED, ours=True, hint=300)
    gateway, began = Gateway([Failure(4), full, Failure(0, ours=True, hint=200)]), time.monotonic()
    pieces, error = await chunks(await client(gateway))
    assert error is None and tokens(pieces) == TOKENS and time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequestError),
        (Code.FAILED_PRECONDITION, FailedPreconditionError),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.INTERNAL, ServerError),
    ],
)
async def test_error_that_another_gateway_would_repeat_is_raised(client, code, kind):
    for failures in ([Failure(4, code, ours=True)], [Failure(4), Failure(0, code, ours=True)]):
        second = Gateway()
        gateways = (Gateway(failures), second) if len(failures) == 1 else (Gateway(failures),)
        pieces, error = await chunks(await client(*gateways))
        assert isinstance(error, kind) and tokens(pieces) == TOKENS[:4] and not second.requests


async def test_stream_when_no_gateway_comes_back_fails_after_the_wait(client):
    gateway, began = Gateway([Failure(4)] + [UNREACHABLE] * 99), time.monotonic()
    pieces, error = await chunks(await client(gateway, resume_seconds=0.5))
    assert isinstance(error, UnavailableError) and tokens(pieces) == TOKENS[:4]
    assert time.monotonic() - began >= 0.5 and len(gateway.requests) > 2


async def test_stream_when_its_time_ends_first_does_not_wait_longer(client):
    gateway = Gateway([Failure(4)] + [UNREACHABLE] * 999)
    _, error = await chunks(await client(gateway, resume_seconds=600), timeout=2)
    assert isinstance(error, UnavailableError | DeadlineExceeded)


async def test_stream_when_resuming_is_off_fails_at_once(client):
    second = Gateway()
    pieces, error = await chunks(await client(Gateway([Failure(4)]), second, resume_seconds=0))
    assert isinstance(error, UnavailableError) and tokens(pieces) == TOKENS[:4] and not second.requests


async def test_gateway_that_does_not_know_resume_repeats_nothing(client):
    """An older version would begin the answer anew."""
    old = Gateway([Failure(4)], fingerprint="")
    pieces, error = await chunks(await client(old, Gateway()))
    assert isinstance(error, UnavailableError) and tokens(pieces) == TOKENS[:4]
    pieces, error = await chunks(await client(Gateway([Failure(4)]), Gateway(fingerprint="")))
    assert isinstance(error, ServerError) and "began it anew" in str(error) and tokens(pieces) == TOKENS[:4]


@pytest.mark.parametrize("ours", [False, True])
async def test_request_that_has_not_begun_is_asked_of_every_gateway(client, ours):
    for failing in (1, 2):
        gateways = [Gateway([Failure(0, ours=ours)] * 9) for _ in range(failing)] + [Gateway()]
        pieces, error = await chunks(await client(*gateways))
        assert error is None and tokens(pieces) == TOKENS and pieces[-1].resumed == 0


@pytest.mark.parametrize("failure", [UNREACHABLE, Failure(0, ours=True)])
async def test_request_that_fails_everywhere_fails_soon(client, failure):
    for count in (1, 3):
        gateways = [Gateway([failure] * 9) for _ in range(count)]
        _, error = await chunks(await client(*gateways))
        assert isinstance(error, UnavailableError) and [len(gateway.requests) for gateway in gateways] == [1] * count


async def test_request_whose_connection_broke_waits_for_the_gateway(client):
    """Also for one that is back, but has found no replica yet."""
    failures = [Failure(0), UNREACHABLE, UNREACHABLE, Failure(0, ours=True, says="no replica yet")]
    gateway = Gateway(failures[:])
    pieces, error = await chunks(await client(gateway))
    assert error is None and tokens(pieces) == TOKENS and pieces[-1].resumed == 0
    listing = Gateway(failures[:])
    assert [model.model for model in await (await client(listing)).models()] == ["m"]


@pytest.mark.parametrize("after", [0, 4])
async def test_request_that_ends_gateway_after_gateway_is_given_up(client, after):
    gateway = Gateway([Failure(after)] + [Failure(0)] * 99)
    _, error = await chunks(await client(gateway))
    assert isinstance(error, UnavailableError) and len(gateway.requests) == 9


async def test_request_that_a_full_gateway_refuses_goes_to_another_one(client):
    full = Failure(0, Code.RESOURCE_EXHAUSTED, ours=True, hint=100)
    pieces, error = await chunks(await client(Gateway([full]), Gateway()))
    assert error is None and tokens(pieces) == TOKENS
    gateways = Gateway([full] * 9), Gateway([full] * 9)
    _, error = await chunks(await client(*gateways))
    assert isinstance(error, OverloadedError) and error.retry_after == 0.1
    assert [len(gateway.requests) for gateway in gateways] == [1, 1]


async def test_other_calls_go_to_the_next_gateway(client):
    for failures in ([Failure(0)], [Failure(0, ours=True)]):
        models = await (await client(Gateway(failures), Gateway())).models()
        assert [model.model for model in models] == ["m"]
    with pytest.raises(FailedPreconditionError):
        await (await client(Gateway([Failure(0, Code.FAILED_PRECONDITION, ours=True)]), Gateway())).models()


async def test_list_without_an_address_is_refused():
    with pytest.raises(InvalidRequestError, match="gateway: there is no address; write host:port"):
        AsyncClient([])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "5", True, None])
async def test_resume_seconds_that_are_no_number_of_seconds_are_refused(seconds):
    with pytest.raises(InvalidRequestError, match=r"resume_seconds: .* is no number of seconds; give a number such as"):
        AsyncClient(resume_seconds=seconds)
