"""The bytes of an answer's tokens, with the kinds of tokenizers that the families of models have."""

import random
import string
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from fsr.decoder.answer import AnswerWriter
from fsr.decoder.engines.base import Generation, Token
from fsr.decoder.log_probabilities import TokenLogprob
from fsr.decoder.metrics import Metrics
from fsr.decoder.sampling import Sampling
from fsr.decoder.token_texts import TokenTexts
from fsr_core.backbones import Prompt
from fsr_core.tiny.model import language_tokenizer
from helpers.checkpoints import qwen_words

TEXTS = [
    "red star",
    " two  spaces ",
    "caf\u00e9 \U0001f600 na\u00efve",
    "\u661f\u661f is a star\n\n\t!",
    "\U0001f469\u200d\U0001f680 <0x41> \u0120 \u00c3 \u2581 \ufffd",
    "\u00e9",
]
WORDS = ["\u2581s", "st", "\u2581st", "ar", "\u2581star", "\u2581\u2581", "re", "\u2581re", "\u2581red"]
MERGES = ["\u2581 s", "s t", "\u2581s t", "a r", "\u2581st ar", "\u2581 \u2581", "r e", "\u2581 re", "\u2581re d"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES += ["\u2581", *string.ascii_lowercase, "\u00e9", "\ufffd", *WORDS]


def llama():
    """Of LLaVA-1.5 and LLaVA-NeXT with Mistral: pieces of SentencePiece, with byte fallback; drops the first space."""
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    return LlamaTokenizer(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in MERGES])


def metaspace():
    """The same pieces with the decoder that other SentencePiece tokenizers have."""
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    words = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    words.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    words.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def with_added_tokens():
    """Tokens that were added to a byte-level tokenizer and are no special ones; letters of its alphabet among them."""
    words = qwen_words()
    words.add_tokens([AddedToken("\u661f \u661f", normalized=False), AddedToken("\u00e9", normalized=False)])
    return words


TOKENIZERS = {
    "fsr-tiny": language_tokenizer,
    "byte-level": qwen_words,
    "added": with_added_tokens,
    "llama": llama,
    "metaspace": metaspace,
}
BYTE_LEVEL = ["fsr-tiny", "byte-level", "added"]


@pytest.fixture(scope="module")
def tokenizer(request):
    return TOKENIZERS[request.param]()


def every(*names):
    return pytest.mark.parametrize("tokenizer", names or TOKENIZERS, indirect=True)


def answer(tokenizer, tokens, emitted=(), stop=(), top=()):
    """The messages of an answer with these tokens after those that another decoder emitted."""
    prompt = Prompt(
        inputs_embeds=torch.zeros(1, 2),
        token_ids=torch.zeros(1, dtype=torch.int64),
        visual_mask=torch.zeros(1, dtype=torch.bool),
        position_ids=None,
    )
    sampling = Sampling(max_tokens=10_000, stop=tuple(stop), ignore_eos=True, logprobs=True)
    generation = Generation(request_id="r", prompt=prompt, sampling=sampling, emitted=tuple(emitted))
    model = SimpleNamespace(tokenizer=tokenizer, eos_token_ids=(), info=SimpleNamespace(context_length=20_000))
    writer = AnswerWriter(generation, model, TokenTexts(tokenizer), Metrics("m"), 0.0)
    messages = []
    for number, token in enumerate(tokens, 1):
        one = Token(
            id=token,
            last=number == len(tokens),
            by_length=True,
            logprob=-0.5,
            top=tuple(TokenLogprob(other, -1.0) for other in top),
            prefill_seconds=0,
            cached_tokens=0,
        )
        messages.append(writer.write(one))
        if messages[-1].finish_reason:
            return messages
    return messages


def text(messages):
    return "".join(message.text for message in messages)


def joined(messages):
    return b"".join(choice.token.text for message in messages for choice in message.token_choices)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@every()
@pytest.mark.parametrize("words", TEXTS)
def test_bytes_joined_are_the_text(tokenizer, words):
    tokens = encode(tokenizer, words)
    messages = answer(tokenizer, tokens)
    assert joined(messages).decode(errors="replace") == text(messages) == tokenizer.decode(tokens)
    assert [choice.token.id for message in messages for choice in message.token_choices] == tokens


@every()
@pytest.mark.parametrize("words", TEXTS)
def test_bytes_after_a_failover_go_on_where_the_first_decoder_stopped(tokenizer, words):
    tokens = encode(tokenizer, words)
    whole = answer(tokenizer, tokens)
    for cut in range(1, len(tokens)):
        rest = answer(tokenizer, tokens[cut:], emitted=tokens[:cut])
        assert joined(whole[:cut]) + joined(rest) == joined(whole)


@every(*BYTE_LEVEL)
def test_bytes_of_random_tokens_are_the_text_where_they_are_utf8(tokenizer):
    """Also special tokens, and ids that only the model has."""
    draw = random.Random(0)
    for _ in range(50):
        tokens = draw.choices(range(len(tokenizer) + 5), k=12)
        messages = answer(tokenizer, tokens)
        assert joined(messages).decode(errors="replace") == text(messages)


@every("llama", "metaspace")
def test_bytes_of_random_pieces_are_the_text(tokenizer):
    """Any pieces but those of single bytes, which seldom make characters; special tokens and marks of spaces first."""
    draw = random.Random(0)
    pieces = [number for number in range(len(tokenizer) + 5) if not 3 <= number < 259]
    for _ in range(50):
        tokens = draw.choices(pieces, k=6)
        messages = answer(tokenizer, tokens)
        assert joined(messages).decode() == text(messages) == tokenizer.decode(tokens, skip_special_tokens=True)


@every()
def test_bytes_of_a_character_in_pieces_are_its_utf8(tokenizer):
    tokens = encode(tokenizer, "star \U0001f600")
    parts = [choice.token.text for m in answer(tokenizer, tokens) for choice in m.token_choices][-4:]
    assert parts == [b"\xf0", b"\x9f", b"\x98", b"\x80"]


@every("llama", "metaspace")
def test_bytes_of_a_first_word_have_no_space_and_those_of_a_later_one_do(tokenizer):
    star = tokenizer.convert_tokens_to_ids("\u2581star")
    first, second = answer(tokenizer, [star, star], top=[star, 4_000])
    for message, star_text in ((first, b"star"), (second, b" star")):
        (choice,) = message.token_choices
        assert choice.token.text == star_text and [one.text for one in choice.top] == [star_text, b""]


@every()
def test_a_special_token_has_no_text_and_does_not_begin_one(tokenizer):
    tokens = [tokenizer.eos_token_id, *encode(tokenizer, "star"), tokenizer.eos_token_id]
    messages = answer(tokenizer, tokens)
    assert joined(messages) == b"star"
    assert [m.token_choices[0].token.text for m in (messages[0], messages[-1])] == [b"", b""]


@every()
@pytest.mark.parametrize("stop", ["star", "d s", "r"])
def test_text_that_a_stop_string_ends_is_the_beginning_of_the_bytes(tokenizer, stop):
    messages = answer(tokenizer, encode(tokenizer, "red star left"), stop=[stop])
    shown = "red star left".split(stop)[0]
    assert text(messages) == shown and joined(messages).startswith(shown.encode())
    assert all(len(message.token_ids) == len(message.token_choices) == 1 for message in messages)


def test_text_of_a_token_is_worked_out_once():
    class Counting:
        def __init__(self, tokenizer):
            self.tokenizer, self.decoded = tokenizer, 0

        def __call__(self, *arguments, **options):
            return self.tokenizer(*arguments, **options)

        def decode(self, ids, **options):
            self.decoded += 1
            return self.tokenizer.decode(ids, **options)

    counting = Counting(language_tokenizer())
    texts = TokenTexts(counting)
    before = counting.decoded
    assert [texts.of(300) for _ in range(5)] and counting.decoded == before + 1
