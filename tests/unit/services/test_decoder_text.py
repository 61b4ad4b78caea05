import pytest
import torch

from fsr_core.tiny.model import language_tokenizer
from services.decoder.sampling import Sampling, choose
from services.decoder.text import TextStream


@pytest.fixture(scope="module")
def tokenizer():
    return language_tokenizer()


def pieces(tokenizer, text, stop=()):
    stream = TextStream(tokenizer, stop)
    out = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()]


@pytest.mark.parametrize("text", ["red star", "caf\u00e9 \U0001f600 na\u00efve", "\u661f\u661f"])
def test_no_half_characters_and_nothing_lost(tokenizer, text):
    got = pieces(tokenizer, text)
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)


def test_stop_strings_are_never_shown(tokenizer):
    got = pieces(tokenizer, "red circle top left", ["circle top"])
    assert "".join(got) == "red "
    assert "".join(pieces(tokenizer, "red circ", ["circle"])) == "red circ"


def test_greedy_and_sampling():
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])
    assert choose(logits, Sampling(5), 0) == 1
    warm = Sampling(5, temperature=1.0, top_p=0.9, seed=4)
    drawn = [choose(logits, warm, step) for step in range(200)]
    assert set(drawn) == {1, 2}
    assert drawn == [choose(logits, warm, step) for step in range(200)]
    assert drawn != [choose(logits, Sampling(5, temperature=1.0, top_p=0.9, seed=5), step) for step in range(200)]
