"""The SDK against the running system: forms of pictures, conversations, arrays, event loops, forks."""

import asyncio
import base64
import io
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from fsr.client import AsyncClient, Client, InvalidRequestError, Message
from fsr.v1 import gateway_pb2, types_pb2

QUESTION, FOLLOW_UP = "Is there a red star?", "What colour is the star?"


@pytest.fixture(scope="module")
def client(system):
    with Client(system["gateway"]) as client:
        yield client


@pytest.fixture(scope="module")
def picture(pictures):
    return pictures(2_100_000, 1)[0]


def test_picture_in_every_form_keeps_the_same_tokens(client, picture, tmp_path):
    path, image = tmp_path / "möd.png", Image.open(io.BytesIO(picture))
    path.write_bytes(picture)
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    with path.open("rb") as opened:
        forms = [picture, bytearray(picture), path, str(path), opened, image, np.asarray(image), uri]
        answer = client.compress(forms, QUESTION, budget=16)
    first, *others = answer.images
    for other in others:
        assert other.index == first.index
        np.testing.assert_allclose(other.features, first.features, rtol=1e-3, atol=1e-4)


def test_features_of_every_format_are_arrays_of_the_same_numbers(client, picture):
    exact = client.compress(picture, QUESTION, budget=16, wire_dtype="fp32").images[0].features
    assert exact.shape == (16, 160) and exact.dtype == np.float32
    for wire, steps in (("fp16", 2**11), ("bf16", 2**8), ("int8", 127)):
        tokens = client.compress(picture, QUESTION, budget=16, wire_dtype=wire).images[0]
        assert tokens.dtype == wire and np.abs(tokens.features - exact).max() <= np.abs(exact).max() / steps


def test_conversation_of_several_turns_is_the_request_that_it_says(client, picture, pictures):
    (second,) = pictures(2_100_001, 1)
    turns = [
        Message("user", QUESTION, picture),
        Message("assistant", "no"),
        Message("user", FOLLOW_UP, Image.open(io.BytesIO(second))),
    ]
    parts = [[types_pb2.Part(image=i), types_pb2.Part(text=text)] for i, text in enumerate((QUESTION, FOLLOW_UP))]
    request = gateway_pb2.GenerateRequest(
        messages=[
            types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts[0]),
            types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=[types_pb2.Part(text="no")]),
            types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts[1]),
        ],
        images=[types_pb2.Image(data=picture), types_pb2.Image(data=second)],
        budget=types_pb2.Budget(tokens=16),
    )
    answer = client.chat(turns, budget=16)
    built = list(client.generate(request))
    assert answer.text and answer.text == "".join(chunk.text for chunk in built)
    assert answer.usage.prompt_tokens == built[-1].usage.prompt_tokens and answer.usage.visual_tokens_kept == 32
    assert "".join(chunk.text for chunk in client.generate(turns, budget=16)) == answer.text
    alone = client.ask(second, FOLLOW_UP, budget=16)
    assert alone.usage.prompt_tokens < answer.usage.prompt_tokens


def test_dictionaries_are_the_same_conversation(client, picture):
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    as_dictionaries = client.chat([{"role": "user", "content": content}], budget=16)
    assert as_dictionaries.token_ids == client.chat([Message("user", QUESTION, picture)], budget=16).token_ids
    assert as_dictionaries.token_ids == client.ask(picture, QUESTION, budget=16).token_ids


def test_fault_in_a_request_that_is_built_has_its_own_names(client, picture):
    request = gateway_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.Part(text="?")])],
        sampling=types_pb2.Sampling(top_p=2),
    )
    with pytest.raises(InvalidRequestError, match=r"^sampling\.top_p: "):
        next(client.generate(request))
    with pytest.raises(InvalidRequestError, match=r"^top_p: "):
        client.ask(picture, QUESTION, top_p=2)


def test_stream_that_is_left_early_ends_and_the_client_goes_on(client, picture):
    for chunk in client.generate([Message("user", QUESTION, picture)], max_tokens=200, ignore_eos=True):
        assert chunk.finish_reason is None
        break
    assert client.ask(picture, QUESTION, budget=16).text


def test_asynchronous_client_made_outside_serves_one_event_loop_after_another(system, picture):
    client = AsyncClient(system["gateway"])

    async def answers():
        one, other = await asyncio.gather(*(client.ask(picture, QUESTION, budget=16) for _ in range(2)))
        return one.text, other.text

    first, second = asyncio.run(answers()), asyncio.run(answers())
    assert first == second and first[0] == first[1]
    asyncio.run(client.close())


def test_fork_is_refused_with_the_remedy_after_a_call_and_works_before_one(system, picture, tmp_path):
    (tmp_path / "scene.png").write_bytes(picture)
    script = f"""
    import os
    from fsr.client import Client

    def ask(client):
        try:
            return "answered " + client.ask("scene.png", "{QUESTION}", budget=16).text
        except RuntimeError as error:
            return f"RuntimeError {{error}}"

    def in_a_child(work):
        if os.fork() == 0:
            print(work(), flush=True)
            client.close()
            os._exit(0)
        assert os.wait()[1] == 0

    client = Client("{system["gateway"]}")
    in_a_child(lambda: ask(client))
    print(ask(client), flush=True)
    in_a_child(lambda: ask(client))
    in_a_child(lambda: ask(Client("{system["gateway"]}")))
    print(ask(client), flush=True)
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = "RuntimeError client: gRPC hangs in a process forked from one that had called a gateway; start processes"
    kinds = [re.match(f"answered|{told}", line)[0] for line in done.stdout.splitlines()]
    assert kinds == ["answered", "answered", told, told, "answered"]
