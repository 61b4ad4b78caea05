"""Questions are tokenised once, by each family's own tokenizer."""

from fsr_core.backbones import load_encoder
from fsr_core.backbones.vision.token_ids import token_ids


def test_ids_of_a_text_are_those_of_the_tokenizer_and_are_made_once():
    tokenizer, texts = load_encoder("fsr-tiny").vision.text.tokenizer, []

    def counted(text, **options):
        texts.append(text)
        return tokenizer(text, **options)

    ids_of = token_ids(counted)
    for text in ("Where is the red star?", "Where is it?") * 2:
        assert list(ids_of(text)) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert texts == ["Where is the red star?", "Where is it?"]
