"""Shape of the embedded model: its two tokenizers, the CLIP and LLaVA configurations, saving and loading."""

from __future__ import annotations

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from fsr_core.tiny.questions import KINDS, NUMBERS, random_question
from fsr_core.tiny.scenes import COLOURS, COLUMNS, ROWS, SHAPES, make_scene
from fsr_core.tiny.training.scene_pool import SIDE

PATCH, GRID = 12, 12
# Line breaks are written as expressions: the template engine drops a bare one that follows a block tag.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER:"
    "{% elif message['role'] == 'system' %}SYSTEM:{% else %}ASSISTANT:{% endif %}"
    "{% if message['content'] is string %}"
    "{{ ' ' if message['role'] == 'assistant' else '\\n' }}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ ' ' if message['role'] == 'assistant' else '\\n' }}{{ part['text'] }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '</s>' if message['role'] == 'assistant' else '\\n' if message['role'] == 'system' else ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def corpus() -> list[str]:
    """Every word the project's questions and answers use, often enough for each to become one token."""
    rng = random.Random(0)
    texts = []
    for seed in range(400):
        scene = make_scene(seed)
        for kind in KINDS:
            question = random_question(scene, rng, (kind,))
            texts.append(f"USER:\n{question.text} ASSISTANT: {question.answer}")
    words = (*COLOURS, *SHAPES, *ROWS, *COLUMNS, *NUMBERS, "yes", "no", "nothing", "picture", "a", "and", "with")
    return texts + [f" {word}" for word in words] * 20


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so any UTF-8 text can be asked; words of the corpus are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=5,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def _in_order(model: dict[str, Any]) -> dict[str, Any]:
    """Vocabulary and merges of a trained tokenizer, always in the same order.

    The trainer numbers the letters that end a word as its hash map has them, differently in each process.
    """
    vocab = model["vocab"]
    endings = sorted(piece for piece in vocab if len(piece) == 5 and piece.endswith("</w>"))
    numbers = sorted(vocab[piece] for piece in endings)
    return {
        "vocab": vocab | dict(zip(endings, numbers, strict=True)),
        "merges": [tuple(pair) for pair in model["merges"]],
    }


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer class (lower case, BOS and EOS, 77 positions) over the same words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate([*letters, *(f"{c}</w>" for c in letters), *specials])}
    base = CLIPTokenizer(vocab=vocab, merges=[])
    learnt = base.train_new_from_iterator(
        [text.lower() for text in corpus()],
        1024,
        initial_alphabet=letters,
        show_progress=False,
        end_of_word_suffix="</w>",
    )
    trained = CLIPTokenizer(**_in_order(json.loads(learnt.backend_tokenizer.to_str())["model"]))
    trained.model_max_length = 77
    return trained


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The vision tower that LLaVA shares, and the text tower that gives relevance."""
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        projection_dim=96,
    )


def llava_config(clip: Any, tokenizer: Any) -> LlavaConfig:
    """LLaVA over that vision tower: features of its second-last block without CLS, two-layer projector, Llama."""
    return LlavaConfig(
        vision_config=clip.vision_config.to_dict(),
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def new_models(seed: int = 0) -> tuple[CLIPModel, LlavaForConditionalGeneration]:
    """Freshly initialised CLIP and LLaVA; word embeddings at a scale of 0.1 (they learn their places sooner)."""
    torch.manual_seed(seed)
    clip_words, words = clip_tokenizer(), language_tokenizer()
    clip = CLIPModel(clip_config(clip_words))
    llava = LlavaForConditionalGeneration(llava_config(clip.config, words))
    embeddings: Any = llava.get_input_embeddings()
    torch.nn.init.normal_(embeddings.weight, std=0.1)
    return clip, llava


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)


def save(clip: CLIPModel, llava: LlavaForConditionalGeneration, folder: Path) -> None:
    """Both checkpoints as the hub lays them out: LLaVA in `folder`, CLIP in `folder/clip`.

    Tensors are stored in half precision, and load as fp32, which the configuration names. A checkpoint that is in
    `folder` already is replaced file by file once the new one is complete.
    """
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    words = language_tokenizer()
    llava.generation_config.eos_token_id = words.eos_token_id
    llava.generation_config.pad_token_id = words.pad_token_id
    processor = LlavaProcessor(
        image_processor(),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        fresh = Path(name)
        for model, where in ((llava, fresh), (clip, fresh / "clip")):
            # The output layer is tied to the embeddings; halved on its own it would be stored a second time.
            half = {key: value.half() for key, value in model.state_dict().items() if key != "lm_head.weight"}
            model.save_pretrained(where, state_dict=half)
        processor.save_pretrained(fresh)
        clip_tokenizer().save_pretrained(fresh / "clip")
        image_processor().save_pretrained(fresh / "clip")
        for path in sorted(fresh.rglob("*")):
            target = folder / path.relative_to(fresh)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)
                path.replace(target)
