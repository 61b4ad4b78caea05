"""A well-behaved caller beside the hostile ones, in a process of its own: what it is answered, and how soon."""

import asyncio
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import httpcore2

from fsr.common.wire.transport import channel_options
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import gateway_pb2_grpc, types_pb2
from helpers.chat import messages

__all__ = ["Answered", "Neighbour", "p99"]

QUESTIONS = (
    "Where is the red star?",
    "What colour is the star?",
    "Is there a red star?",
    "How many squares are there?",
)
TOKENS, BUDGET = 8, 16


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One request of the neighbour. `answer`: the text, or what the error says."""

    question: int
    code: str
    answer: str
    seconds: float


def p99(answers: Sequence[Answered]) -> float:
    """Seconds; with fewer than a hundred answers it is the slowest one."""
    return sorted(answer.seconds for answer in answers)[int(0.99 * (len(answers) - 1) + 0.5)]


class Neighbour:
    """Asks by gRPC and by HTTP in turn, one request at a time, while it is told to.

    Each request has a picture that no cache knows: the same scene with other bytes behind the file's end.
    """

    def __init__(self, grpc_address: str, http_address: str, key: str, picture: bytes, pause: float) -> None:
        """`pause`: seconds between two requests."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, grpc_address, http_address, key, picture, pause)
        self._process = context.Process(target=_main, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is ready

    @contextmanager
    def asking(self, at_least: int) -> Iterator[list[Answered]]:
        """It asks until the block ends, and then until it has asked so often. The list is filled at the end."""
        answers: list[Answered] = []
        self._pipe.send("begin")
        try:
            yield answers
        finally:
            self._pipe.send(at_least)
            answers += self._pipe.recv()

    def asks(self, count: int) -> list[Answered]:
        """The answers to so many requests."""
        with self.asking(count) as answers:
            pass
        return answers

    def close(self) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()


def _main(pipe, *arguments) -> None:
    asyncio.run(_run(pipe, *arguments))


async def _run(pipe, grpc_address: str, http_address: str, key: str, picture: bytes, pause: float) -> None:
    url, headers = f"http://{http_address}/v1/chat/completions", {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"}
    number = itertools.count()
    async with (
        grpc.aio.insecure_channel(grpc_address, options=channel_options()) as channel,
        httpcore2.AsyncConnectionPool() as pool,
    ):
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)

        async def by_grpc(question: str, file: bytes) -> tuple[str, str]:
            request = pb.GenerateRequest(
                images=[types_pb2.Image(data=file)],
                messages=[
                    types_pb2.Message(
                        role=types_pb2.ROLE_USER, parts=[types_pb2.Part(image=0), types_pb2.Part(text=question)]
                    )
                ],
                budget=types_pb2.Budget(tokens=BUDGET),
                sampling=types_pb2.Sampling(max_tokens=TOKENS, ignore_eos=True),
            )
            try:
                metadata = (("authorization", f"Bearer {key}"),)
                pieces = [piece.text async for piece in stub.Generate(request, timeout=120, metadata=metadata)]
                return "OK", "".join(pieces)
            except grpc.aio.AioRpcError as error:
                return error.code().name, str(error.details())

        async def by_http(question: str, file: bytes) -> tuple[str, str]:
            body = {"messages": messages(question, file), "max_tokens": TOKENS, "ignore_eos": True}
            body["fsr"] = {"budget": BUDGET, "timeout": 120}
            response = await pool.request("POST", url, headers=headers, content=json.dumps(body).encode())
            if response.status != 200:
                return str(response.status), response.content.decode()
            return "OK", json.loads(response.content)["choices"][0]["message"]["content"]

        async def ask() -> Answered:
            turn = next(number)
            question = turn // 2 % len(QUESTIONS)
            file = picture + turn.to_bytes(8)
            began = time.monotonic()
            code, answer = await (by_http if turn % 2 else by_grpc)(QUESTIONS[question], file)
            return Answered(question=question, code=code, answer=answer, seconds=time.monotonic() - began)

        for _ in range(2 * len(QUESTIONS)):  # connections are open, and everything was asked once
            await ask()
        pipe.send("ready")
        while await asyncio.to_thread(_received, pipe) is not None:
            answers: list[Answered] = []
            while not pipe.poll():
                answers.append(await ask())
                await asyncio.sleep(pause)
            at_least = pipe.recv()
            while len(answers) < at_least:
                answers.append(await ask())
                await asyncio.sleep(pause)
            pipe.send(answers)


def _received(pipe):
    """What comes next; None once the other side has closed."""
    try:
        return pipe.recv()
    except EOFError:
        return None
