"""Every method by name through the whole system, several of them in one batch of the encoder."""

import asyncio
import io

import pytest

from fsr.client import AsyncClient, Client, InvalidRequestError
from fsr_core import create, methods
from fsr_core.backbones import load_encoder
from fsr_core.tiny.scenes import draw, make_scene

QUESTIONS = ("Where is the red star?", "How many circles are there?")


def test_every_method_keeps_remotely_what_it_keeps_here(system):
    scene, out = draw(make_scene(1_100_010)), io.BytesIO()
    scene.save(out, "PNG")
    encoder = load_encoder("fsr-tiny")
    (image,) = encoder.encode_images([encoder.preprocess(scene)])
    texts = encoder.encode_instructions(QUESTIONS)
    jobs = [(method, number) for method in methods() for number in range(len(QUESTIONS))]

    async def everything() -> list[tuple[int, ...]]:
        async with AsyncClient(system["gateway"]) as client:
            room = asyncio.Semaphore(16)  # the gateway refuses what is too much at a time

            async def index(method: str, number: int) -> tuple[int, ...]:
                async with room:
                    told = await client.compress(out.getvalue(), QUESTIONS[number], budget=8, method=method)
                return told.images[0].index

            return list(await asyncio.gather(*(index(*job) for job in jobs)))

    told = asyncio.run(everything())
    for (method, number), index in zip(jobs, told, strict=True):
        assert list(index) == create(method).compress(encoder.visual_tokens(image, texts[number]), 8).index.tolist()


def test_what_is_no_method_is_refused_with_the_list(system):
    out = io.BytesIO()
    draw(make_scene(1_100_010)).save(out, "PNG")
    with Client(system["gateway"]) as client:
        with pytest.raises(InvalidRequestError, match=r"fastv.*cdpruner, dart, holov, scope"):
            client.ask(out.getvalue(), QUESTIONS[0], method="fastv")
        with pytest.raises(InvalidRequestError, match="pivots"):
            client.ask(out.getvalue(), QUESTIONS[0], method="dart", options={"pivots": 0})
