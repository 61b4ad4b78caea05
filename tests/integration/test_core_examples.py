"""The pages' examples without a service: compression in a script, and on tensors. Run as they stand but for paths."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.scenes import draw, make_scene
from helpers.pages import PAGES, blocks, is_example, name_of, sends_requests

PATHS = {"/models/llava-1.5-7b-hf": str(WEIGHTS), "/models/clip-vit-large-patch14-336": str(WEIGHTS / "clip")}


def examples():
    for page in PAGES:
        for block in blocks(page):
            if is_example(block) and not sends_requests(block):
                yield pytest.param(page, block, id=f"{name_of(page)}:{block.line}")


@pytest.fixture(scope="module")
def given():
    """What the page's reader has."""
    model, processor = AutoModelForImageTextToText.from_pretrained(WEIGHTS), AutoProcessor.from_pretrained(WEIGHTS)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the red star?"}]}]
    generator = torch.Generator().manual_seed(1)
    return {
        "model": model,
        "processor": processor,
        "image": draw(make_scene(1_130_582)),
        "prompt": processor.apply_chat_template(chat, add_generation_prompt=True),
        "v": torch.randn(144, 8, generator=generator),
        "s": torch.rand(144, generator=generator),
        "r": torch.rand(144, generator=generator),
    }


@pytest.mark.parametrize(("page", "block"), list(examples()))
def test_example_works(page, block, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given["image"].save("scene.png")
    code, names = block.code, dict(given)
    for path, ours in PATHS.items():
        code = code.replace(path, ours)
    monkeypatch.setattr("fsr_core.compressor._REGISTERED", {})  # an example adds a method
    exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), names)
    if "vlm" in names:
        assert names["vlm"].last[0].saved
    if (tmp_path / "why.png").exists():
        with Image.open("why.png") as picture:
            assert picture.width >= 720


def test_pages_have_examples():
    assert {name_of(param.values[0]) for param in examples()} >= {"README.md", "docs/models.md", "docs/methods.md"}
