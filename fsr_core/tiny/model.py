"""The architecture of the embedded model: two tokenizers, the CLIP and LLaVA configurations; and how it is saved."""

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
from fsr_core.tiny.quilts import TEXTURES, TINTS
from fsr_core.tiny.scenes import COLOURS, COLUMNS, MARKS, ROWS, SHAPES, Scene, make_scene

PATCH, GRID = 12, 12  # pixels of a patch's side; patches on a side
IMAGE_SIDE = PATCH * GRID  # pixels, the vision tower's resolution
WIDE, NARROW = 96, 4  # numbers of CLIP's joint space: while the tower is trained, and of the shipped weights
# Line breaks are written as expressions, because the template engine drops a plain one after a block tag.
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
    """Texts with every word of the questions and answers, often enough that each word becomes one token."""
    rng = random.Random(0)
    texts = []
    for seed in range(400):
        scene = make_scene(seed)
        for kind in KINDS:
            question = random_question(scene, rng, (kind,))
            texts.append(f"USER:\n{question.text} ASSISTANT: {question.answer}")
        texts.append(caption(scene))
    words = (*COLOURS, *SHAPES, *ROWS, *COLUMNS, *NUMBERS, *MARKS, *TINTS, *TEXTURES)
    more = ("yes", "no", "nothing", "picture", "middle", "a", "and", "with", "marked")
    return texts + [f" {word}" for word in (*words, *more)] * 20


def caption(scene: Scene) -> str:
    """All things of a scene with their marks, short enough for CLIP's 77 positions even with sixteen things."""
    return ", ".join(thing.name if thing.mark is None else f"{thing.name} {thing.mark}" for thing in scene.things)


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so any UTF-8 text can be encoded; each word of the corpus is one token."""
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


def _in_fixed_order(model: dict[str, Any]) -> dict[str, Any]:
    """Vocabulary and merges of a trained tokenizer, always in the same order.

    The trainer numbers the letters that end a word in the order of a hash map, which differs from process to process.
    """
    vocab = model["vocab"]
    endings = sorted(piece for piece in vocab if len(piece) == 5 and piece.endswith("</w>"))
    numbers = sorted(vocab[piece] for piece in endings)
    return {
        "vocab": vocab | dict(zip(endings, numbers, strict=True)),
        "merges": [tuple(pair) for pair in model["merges"]],
    }


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer class (lower case, BOS and EOS, 77 positions), trained on the same words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate([*letters, *(f"{c}</w>" for c in letters), *specials])}
    base = CLIPTokenizer(vocab=vocab, merges=[])
    learned = base.train_new_from_iterator(
        [text.lower() for text in corpus()],
        1024,
        initial_alphabet=letters,
        show_progress=False,
        end_of_word_suffix="</w>",
    )
    tokenizer = CLIPTokenizer(**_in_fixed_order(json.loads(learned.backend_tokenizer.to_str())["model"]))
    tokenizer.model_max_length = 77
    return tokenizer


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """The vision tower that CLIP and LLaVA share, and the text tower that gives relevance."""
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
            "image_size": IMAGE_SIDE,
            "patch_size": PATCH,
        },
        projection_dim=WIDE,
    )


def llava_config(clip: Any, tokenizer: Any) -> LlavaConfig:
    """LLaVA on CLIP's vision tower: features of its second-last block without CLS, a two-layer projector, Llama."""
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
    """Freshly initialised CLIP and LLaVA. Word embeddings have a scale of 0.1: training then gets on sooner."""
    torch.manual_seed(seed)
    clip = CLIPModel(clip_config(clip_tokenizer()))
    llava = LlavaForConditionalGeneration(llava_config(clip.config, language_tokenizer()))
    embeddings: Any = llava.get_input_embeddings()
    torch.nn.init.normal_(embeddings.weight, std=0.1)
    return clip, llava


def narrow_joint_space(clip: CLIPModel) -> None:
    """Gives CLIP new projections into a joint space of `NARROW` numbers.

    Its relevance is then as imprecise as that of real checkpoints, which have a few hundred numbers for all the world's
    words: it finds the thing that a question names, and now and then another one.
    """
    configs: list[Any] = [clip.config, clip.config.text_config, clip.config.vision_config]
    for config in configs:
        config.projection_dim = NARROW
    clip.projection_dim = NARROW
    clip.visual_projection = torch.nn.Linear(clip.vision_embed_dim, NARROW, bias=False)
    clip.text_projection = torch.nn.Linear(clip.text_embed_dim, NARROW, bias=False)


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIDE}, crop_size=size)


def save(clip: CLIPModel, llava: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes both checkpoints in the hub's format: LLaVA into `folder`, CLIP into `folder/clip`.

    Tensors are stored in half precision and load as fp32, as the configuration says. Files of an older checkpoint in
    `folder` are replaced one by one, once the new checkpoint is complete.
    """
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    tokenizer = language_tokenizer()
    llava.generation_config.eos_token_id = tokenizer.eos_token_id
    llava.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor(),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        new = Path(name)
        for model, target in ((llava, new), (clip, new / "clip")):
            # The output layer is tied to the embeddings; a converted copy of it would be stored a second time.
            half = {key: value.half() for key, value in model.state_dict().items() if key != "lm_head.weight"}
            model.save_pretrained(target, state_dict=half)
        processor.save_pretrained(new)
        clip_tokenizer().save_pretrained(new / "clip")
        image_processor().save_pretrained(new / "clip")
        for path in sorted(new.rglob("*")):
            target = folder / path.relative_to(new)
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.chmod(0o644)
                path.replace(target)
