"""Every family behind the services says what plug-and-play says: the whole system, Ray Serve included."""

import io
import json
import subprocess
import sys

import pytest
import torch

import fsr_core
from fsr.cli.local_stack import running
from fsr.client import Client, InvalidRequestError, Video
from helpers import checkpoints
from helpers.benches import Bench, chat, picture

QUESTION = "what colour is the star?"
BUDGET = 9
# A family with videos, positions of three axes and features for several layers. The others go the same ways; all of
# them are compared over the wire, without Ray, in the unit tests.
IN_EVERY_RUN = ("qwen3_vl",)
PICTURE = picture((70, 50))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    def get(name):
        torch.manual_seed(7)
        folder = tmp_path_factory.mktemp(name)
        own = Bench(name, folder, checkpoints.FAMILIES[name](folder))
        if name in ("llava", "llava_next"):
            checkpoints.clip(own.whole.model.vision_tower, folder / "clip")
        return own

    return get


def png(shown=PICTURE):
    out = io.BytesIO()
    shown.save(out, "PNG")
    return out.getvalue()


def plugged(own, shown=PICTURE, spread="even"):
    """What the model says in this process about a picture or frames, with the same budget."""
    _, inputs, _, _ = chat(own, ("user", shown, QUESTION))
    clip = str(own.folder / "clip") if (own.folder / "clip").is_dir() else None
    with fsr_core.compressed(own.whole, own.processor, BUDGET, clip=clip, spread=spread) as vlm:
        ids = vlm.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return own.processor.tokenizer.decode(ids, skip_special_tokens=True)


def param(name):
    return pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.cluster)


@pytest.mark.parametrize("name", [param(name) for name in checkpoints.FAMILIES])
def test_the_whole_system(family, free_ports, tmp_path, name):
    own = family(name)
    with (
        running(str(own.folder), 1, free_ports(30), tmp_path, start_seconds=None) as at,
        Client(at["gateway"]) as client,
    ):
        answer = client.ask(png(), QUESTION, budget=BUDGET, max_tokens=8)
        assert answer.text == plugged(own)
        assert answer.usage.visual_tokens_kept == BUDGET
        if name in checkpoints.VIDEO:
            videos_are_answered(own, client, at["gateway"], tmp_path)
        else:
            with pytest.raises(InvalidRequestError, match=rf"images\[0\]: video: {name} takes pictures only"):
                client.ask(Video([png()]), QUESTION, budget=BUDGET)


def videos_are_answered(own, client, gateway, folder):
    """Through the SDK as bytes and through the command as a folder, evenly and freely, as plug-and-play answers."""
    frames = [picture((48, 32), number) for number in range(4)]
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / "frames" / f"{number + 8}.png")
    for spread in ("even", "free"):
        want = plugged(own, frames, spread)
        options = {"budget": BUDGET, "spread": spread, "max_tokens": 8}
        answer = client.ask(Video([png(frame) for frame in frames]), QUESTION, **options)
        assert (answer.text, answer.usage.visual_tokens_kept) == (want, BUDGET)
        said = fsr("ask", folder / "frames", QUESTION, "--gateway", gateway, "--spread", spread, "--max-tokens", 8)
        assert json.loads(said.stdout)["answer"] == want.strip()
    why = fsr("explain", folder / "frames", QUESTION, "--gateway", gateway, "-o", folder / "why.png")
    assert json.loads(why.stdout)["kept"] == BUDGET and (folder / "why.png").read_bytes().startswith(b"\x89PNG")
    (folder / "frames" / "9.png").write_bytes(b"no picture")
    wrong = fsr("ask", folder / "frames", QUESTION, "--gateway", gateway)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: images[0].frames[1]: is no readable JPEG")


def fsr(*arguments):
    command = [sys.executable, "-m", "fsr.cli.main", *map(str, arguments), "--budget", str(BUDGET), "--json"]
    return subprocess.run(command, capture_output=True, text=True)
