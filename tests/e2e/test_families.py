"""Every family behind the services says what plug-and-play says: the whole system, Ray Serve included.

Its encoder has two replicas with ports of their own (Serve's direct ingress), found and balanced by the gateway. The
other tests' system has one behind Serve's proxy.
"""

import io
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

import fsr_core
from fsr.cli.local_stack import running
from fsr.client import Client, InvalidRequestError, Video
from helpers import checkpoints
from helpers.benches import Bench, chat, picture
from helpers.clips import write_clip
from helpers.page import api_answer, ask_and_wait, chromium, data_uri, expected_states, opened, table_of_tokens
from helpers.waiting import until

QUESTION = "what colour is the star?"
BUDGET = 9
# A family with videos, positions of three axes and features for several layers. The others go the same ways; all of
# them are compared over the wire, without Ray, in the unit tests.
IN_EVERY_RUN = ("qwen3_vl",)
PICTURE = picture((70, 50))


@dataclass
class Served:
    """A family's checkpoint, and the system that serves it at these addresses."""

    name: str
    own: Bench
    at: dict[str, str]
    client: Client


def param(name):
    return pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.cluster)


@pytest.fixture(scope="module", params=[param(name) for name in checkpoints.FAMILIES])
def served(request, tmp_path_factory, free_ports):
    name, folder = request.param, tmp_path_factory.mktemp(f"{request.param}-möd")  # as the model is called then
    torch.manual_seed(7)
    own = Bench(name, folder, checkpoints.FAMILIES[name](folder))
    if name in ("llava", "llava_next"):
        checkpoints.clip(own.whole.model.vision_tower, folder / "clip")
    replicas = {"min_replicas": "2", "max_replicas": "2", "num_cpus": "0.5"}
    options = {"ingress": "direct", "direct_port": str(free_ports(4)), **replicas}
    logs = tmp_path_factory.mktemp("logs")
    with (
        running(str(folder), 1, free_ports(30), logs, encoder_options=options, start_seconds=None) as at,
        Client(at["gateway"], replicas=True) as client,
    ):
        until(lambda: client.models(timeout=60)[0].encoders == 2, 300)
        yield Served(name, own, at, client)


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


def test_picture_is_answered_as_by_plug_and_play(served):
    answer = served.client.ask(png(), QUESTION, budget=BUDGET, max_tokens=8)
    assert answer.text == plugged(served.own)
    assert answer.usage.visual_tokens_kept == BUDGET


def test_video_is_answered_and_shown_or_refused(served, tmp_path):
    if served.name in checkpoints.VIDEO:
        videos_are_answered(served.own, served.client, served.at["gateway"], tmp_path)
        page_shows_each_frame(served.at["http"], tmp_path)
    else:
        with pytest.raises(InvalidRequestError, match=rf"images\[0\]: video: {served.name} takes pictures only"):
            served.client.ask(Video([png()]), QUESTION, budget=BUDGET)


def test_follow_up_question_reaches_the_replica_with_the_cached_picture(served):
    called = Counter()
    for number in range(12):
        shown = png(picture((70, 50), 100 + number))
        first = served.client.ask(shown, QUESTION, budget=BUDGET, max_tokens=2)
        second = served.client.ask(shown, "what shape is it?", budget=BUDGET - 1, max_tokens=2)
        assert first.usage.cached_images == 0 and second.usage.cached_images == 1
        assert first.route.encoders == second.route.encoders
        called.update(first.route.encoders)
    assert len(called) == 2  # both replicas take part
    assert served.at["encoder"] not in called  # the proxy does not


def test_error_with_direct_ingress_is_the_same_as_through_the_proxy(served):
    with pytest.raises(InvalidRequestError, match=r"images\[0\]\.data: is no readable JPEG"):
        served.client.ask(b"no picture", QUESTION, budget=BUDGET)


def test_metrics_of_gateway_and_encoder_have_the_name_that_is_not_ascii(served):
    served.client.ask(png(), QUESTION, budget=BUDGET, max_tokens=2)
    for page, metric in (("metrics", "fsr_visual_tokens_in"), ("encoder-metrics", "ray_fsr_encoder_images")):
        until(lambda page=page, metric=metric: models_of(served.at[page], metric) == {served.own.folder.name})


def models_of(address, metric):
    """The models that a page of metrics has a counter of."""
    page = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    return {
        sample.labels["model"]
        for family in text_string_to_metric_families(page)
        if family.name == metric
        for sample in family.samples
    }


def videos_are_answered(own, client, gateway, folder):
    """Through the SDK as bytes and through the command as a folder, evenly and freely, as plug-and-play answers."""
    frames = [picture((48, 32), number) for number in range(4)]
    (folder / "frames").mkdir()
    for path, frame in zip(frame_paths(folder), frames, strict=True):
        frame.save(path)
    for spread in ("even", "free"):
        want = plugged(own, frames, spread)
        options = {"budget": BUDGET, "spread": spread, "max_tokens": 8}
        answer = client.ask(Video([png(frame) for frame in frames]), QUESTION, **options)
        assert (answer.text, answer.usage.visual_tokens_kept) == (want, BUDGET)
        said = fsr("ask", folder / "frames", QUESTION, "--gateway", gateway, "--spread", spread, "--max-tokens", 8)
        assert json.loads(said.stdout)["answer"] == want.strip()
    clip = write_clip(folder / "möd.mp4", frames, rate=2)
    want = plugged(own, [Image.open(io.BytesIO(frame)) for frame in Video.from_file(clip).frames])
    assert client.ask(clip, QUESTION, budget=BUDGET, max_tokens=8).text == want
    said = fsr("ask", clip, QUESTION, "--gateway", gateway, "--max-tokens", 8)
    assert json.loads(said.stdout)["answer"] == want.strip()
    for video, why in ((folder / "frames", folder / "why.png"), (clip, folder / "why-clip.png")):
        done = fsr("explain", video, QUESTION, "--gateway", gateway, "-o", why)
        assert json.loads(done.stdout)["kept"] == BUDGET and why.read_bytes().startswith(b"\x89PNG")
    (folder / "wrong").mkdir()
    for number in range(2):
        (folder / "wrong" / f"{number}.png").write_bytes(b"no picture" if number else png(frames[0]))
    wrong = fsr("ask", folder / "wrong", QUESTION, "--gateway", gateway)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: images[0].frames[1]: is no readable JPEG")


def page_shows_each_frame(address, folder):
    """Several files on the page are a video; every view is drawn, with the tokens that the API tells."""
    files = [path.read_bytes() for path in frame_paths(folder)]
    video = {"type": "video_url", "video_url": {"frames": [data_uri(file, "png") for file in files], "fps": 4}}
    image = api_answer(address, video, QUESTION, 0.11, max_tokens=8)["fsr"]["images"][0]
    with chromium() as browser, opened(browser, address) as page:
        page.set_input_files("#files", list(reversed(frame_paths(folder))))
        expect(page.locator("#preview img")).to_have_count(len(files))
        page.fill("#fps", "4")
        page.fill("#question", QUESTION)
        page.click("form summary")
        page.fill("#max-tokens", "8")
        ask_and_wait(page)
        assert page.locator("canvas").count() == len(image["explanation"]["views"]) > 1
        assert [cell["state"] for cell in table_of_tokens(page)] == expected_states(image)


def frame_paths(folder):
    """In the order of the frames, which is not that of their names as text."""
    return [folder / "frames" / f"{number}.png" for number in range(8, 12)]


def fsr(*arguments):
    command = [sys.executable, "-m", "fsr.cli.main", *map(str, arguments), "--budget", str(BUDGET), "--json"]
    return subprocess.run(command, capture_output=True, text=True)
