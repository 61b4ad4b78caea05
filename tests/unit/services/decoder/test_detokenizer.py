import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from fsr.decoder.detokenizer import TextStream
from fsr_core.tiny.model import language_tokenizer

TEXTS = [
    "red star",
    "caf\u00e9 \U0001f600 na\u00efve",
    "\u661f\u661f",
    "a\ufffdb",
    " two  spaces ",
    "\U0001f469\u200d\U0001f680!",
]


@pytest.fixture(scope="module")
def tokenizer():
    return language_tokenizer()


def stream(tokenizer, tokens, stop=(), skip=0):
    """Pieces of a stream that continues another one: `skip` tokens were given out before."""
    text = TextStream(tokenizer, stop)
    for token in tokens[:skip]:
        text.push(token)
    out = []
    for token in tokens[skip:]:
        out.append(text.push(token))
        if text.stopped:
            break
    return [*out, text.finish()]


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_in_whole_characters_and_complete(tokenizer, text):
    tokens = encode(tokenizer, text)
    pieces = stream(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stop", [(), ("xyz", "star?"), ("na\u00efve",)])
def test_a_stream_continues_elsewhere_with_the_same_text(tokenizer, text, stop):
    """Cut after every token, so also in the middle of every character of several bytes."""
    tokens = encode(tokenizer, text)
    whole = stream(tokenizer, tokens, stop)
    for cut in range(len(whole) - 1):
        assert "".join([*whole[:cut], *stream(tokenizer, tokens, stop, cut)]) == "".join(whole)


def test_bytes_of_no_character_come_out_at_the_end(tokenizer):
    tokens = encode(tokenizer, "star \U0001f600")[:-2]
    pieces = stream(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens) and "\ufffd" not in "".join(pieces[:-1])


def test_bytes_that_are_no_utf8_after_text_raise_nothing():
    """A byte-fallback tokenizer decodes "4" and then a byte of no character to other text than "4" alone."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"s": 256}
    byte_fallback = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    byte_fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokens = [ord("4"), 0x87, 0x8A, 256]
    text = "".join(stream(PreTrainedTokenizerFast(tokenizer_object=byte_fallback), tokens))
    assert text.startswith("4") and text.endswith("s")


def test_special_tokens_are_not_shown(tokenizer):
    tokens = [*encode(tokenizer, "red"), tokenizer.eos_token_id, *encode(tokenizer, " star")]
    assert "".join(stream(tokenizer, tokens)) == "red star"


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("red circle top left", ["circle top"], "red "),
        ("red circ", ["circle"], "red circ"),
        ("red circle", ["blue", "r"], ""),
        ("ababac", ["abac"], "ab"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("a left b", ["left b", "a left"], ""),
    ],
)
def test_stop_strings_are_never_shown(tokenizer, text, stop, shown):
    assert "".join(stream(tokenizer, encode(tokenizer, text), stop)) == shown


def test_the_cost_of_a_token_does_not_grow_with_the_answer(tokenizer):
    """Counts decoded tokens, not seconds."""

    class Counting:
        decoded = 0

        def decode(self, ids, **options):
            self.decoded += len(ids)
            return tokenizer.decode(ids, **options)

    counting = Counting()
    tokens = encode(tokenizer, "red star left of blue circle " * 50)
    stream(counting, tokens)
    assert counting.decoded < 8 * len(tokens)


def test_the_cost_of_a_token_does_not_grow_with_a_stop_string(tokenizer):
    """Counts the beginnings of the stop string that are compared with the text, not seconds."""

    class Counting(str):
        cut = 0

        def __getitem__(self, key):
            self.cut += 1
            return super().__getitem__(key)

    stop = Counting("nowhere " * 32)
    tokens = encode(tokenizer, "red star left of blue circle " * 4)
    assert "".join(stream(tokenizer, tokens, [stop])) == tokenizer.decode(tokens)
    assert 0 < stop.cut < 16 * len(tokens)
