"""Callers who send any bytes, by gRPC and by HTTP, so many at a time; and what they get."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import httpcore2

__all__ = ["RPCS", "STREAMS", "Input", "Outcome", "call_all", "post_all"]

_SERVICES = {
    "fsr.v1.GatewayService": ("Generate", "Compress", "ListModels"),
    "fsr.v1.EncoderService": ("Encode", "DescribeEncoder"),
    "fsr.v1.DecoderService": ("Decode", "DescribeDecoder"),
    "grpc.health.v1.Health": ("Check", "List"),
}
RPCS = {rpc: f"/{service}/{rpc}" for service, rpcs in _SERVICES.items() for rpc in rpcs}
STREAMS = {"Generate", "Decode"}
_ANY_SIZE = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One thing to send. `where`: an rpc, or method and path of an HTTP route. `what` names it for whoever reads a
    failure."""

    where: str
    data: bytes
    what: str = ""
    gzip: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended: name of the gRPC code, or HTTP status. `details`: the error, or nothing."""

    what: str
    code: str
    details: str = ""
    trailers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def call_all(
    address: str,
    inputs: Sequence[Input],
    *,
    key: str | None = None,
    timeout: float = 60.0,
    at_once: int = 8,
    connections: int = 1,
) -> list[Outcome]:
    """Sends them over so many connections in turn, in the order of the list; the outcome of each."""
    return asyncio.run(_call_all(address, inputs, key, timeout, at_once, connections))


async def _call_all(
    address: str, inputs: Sequence[Input], key: str | None, timeout: float, at_once: int, connections: int
) -> list[Outcome]:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    async with AsyncExitStack() as stack:
        options = [*_ANY_SIZE, ("grpc.use_local_subchannel_pool", 1)]  # else channels share their connections
        opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
        channels = itertools.cycle([await stack.enter_async_context(channel) for channel in opened])

        async def call(one: Input) -> Outcome:
            began, channel = time.monotonic(), next(channels)
            make = channel.unary_stream if one.where in STREAMS else channel.unary_unary
            method = make(RPCS.get(one.where, one.where), request_serializer=None, response_deserializer=None)
            options = {"timeout": timeout, "metadata": (*metadata, *one.headers)}
            sent = method(one.data, compression=grpc.Compression.Gzip if one.gzip else None, **options)
            try:
                if one.where in STREAMS:
                    async for _ in sent:
                        pass
                else:
                    await sent
                code, details, trailers = "OK", "", await sent.trailing_metadata()
            except grpc.aio.AioRpcError as error:
                code, details, trailers = error.code().name, error.details() or "", error.trailing_metadata()
            texts = {str(name): str(value) for name, value in trailers or ()}
            took = time.monotonic() - began
            return Outcome(what=one.what, code=code, details=details, trailers=texts, seconds=took)

        return await _some_at_once([(lambda one=one: call(one)) for one in inputs], at_once)


def post_all(
    address: str, inputs: Sequence[Input], *, key: str | None = None, timeout: float = 60.0, at_once: int = 8
) -> list[Outcome]:
    """The same by HTTP. `trailers` are the headers of the response."""
    return asyncio.run(_post_all(address, inputs, key, timeout, at_once))


async def _post_all(
    address: str, inputs: Sequence[Input], key: str | None, timeout: float, at_once: int
) -> list[Outcome]:
    limits = dict.fromkeys(("connect", "read", "write", "pool"), timeout)
    authorization = [("Authorization", f"Bearer {key}")] if key else []
    async with httpcore2.AsyncConnectionPool(max_connections=at_once) as pool:

        async def post(one: Input) -> Outcome:
            began = time.monotonic()
            method, path = one.where.split(" ", 1)
            headers = [*authorization, *one.headers]
            if one.data and "content-type" not in {name.lower() for name, _ in one.headers}:
                headers.append(("Content-Type", "application/json"))
            response = await pool.request(
                method, f"http://{address}{path}", headers=headers, content=one.data, extensions={"timeout": limits}
            )
            texts = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
            details = response.content.decode(errors="replace") if response.status >= 400 else ""
            took = time.monotonic() - began
            return Outcome(what=one.what, code=str(response.status), details=details, trailers=texts, seconds=took)

        return await _some_at_once([(lambda one=one: post(one)) for one in inputs], at_once)


async def _some_at_once(calls: Iterable, at_once: int) -> list[Outcome]:
    """Their results in order; never more than so many run."""
    room = asyncio.Semaphore(at_once)

    async def run(call) -> Outcome:
        async with room:
            return await call()

    return await asyncio.gather(*(run(call) for call in calls))
