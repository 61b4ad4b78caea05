"""Tiny checkpoints of every family with random weights, in the hub's folder format, and their processors.

The library's processors of families with videos need torchvision. Here the same classes get a video processor that
works on Pillow.
"""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import sentencepiece
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<video>"]
QWEN_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif p['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
CLIP_VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


QWEN_VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 64,
}
#: further arguments of save_pretrained
SAVING = {}


def tokenizer(specials, **names):
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(["what colour is the star seconds user assistant"] * 8, trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=2048, padding_side="left", **names)


class PillowVideos:
    """Scales frames to the family's size, then normalises and cuts them like the family's image processor."""

    def __init__(self, images, size, pair=None, seconds=2.0):
        self.images, self.frame_size, self.temporal_patch_size, self.seconds = images, size, pair, seconds
        self.merge_size = getattr(images, "merge_size", 1)
        self.size = {"shortest_edge": 1024, "longest_edge": 16384}

    def __call__(self, videos, **kwargs):
        frames = list(videos[0])
        if self.temporal_patch_size is None:
            pixels = [self.images(f, do_center_crop=False)["pixel_values"][0] for f in frames]
            pixels = [np.asarray(p[0] if np.asarray(p).ndim == 4 else p) for p in pixels]
            return tf.BatchFeature({"pixel_values_videos": torch.tensor(np.stack(pixels))[None]})
        indices = list(range(len(frames)))
        frames += frames[-1:] * (len(frames) % 2)
        height, width = self.frame_size
        scaled = [np.asarray(f.resize((width, height), 3), dtype=np.float32).transpose(2, 0, 1) for f in frames]
        mean, std = (
            np.array(v, dtype=np.float32)[:, None, None] for v in (self.images.image_mean, self.images.image_std)
        )
        stack = (np.stack(scaled) * np.float32(1 / 255) - mean) / std
        p, m = self.images.patch_size, self.merge_size
        t, h, w = len(frames) // 2, height // p, width // p
        blocks = stack.reshape(t, 2, 3, h // m, m, p, w // m, m, p).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return tf.BatchFeature(
            {
                "pixel_values_videos": torch.tensor(blocks.reshape(t * h * w, -1)),
                "video_grid_thw": torch.tensor([[t, h, w]]),
                "video_metadata": [SimpleNamespace(fps=self.seconds, sampled_fps=self.seconds, frames_indices=indices)],
            }
        )


def with_videos(kind, images, words, videos, **options):
    """A processor of the library with a video processor of ours."""

    class Processor(kind):
        def check_argument_for_proper_class(self, name, argument):
            return type(argument)

    return Processor(image_processor=images, tokenizer=words, video_processor=videos, **options)


def llava_words():
    return tokenizer(
        SPECIALS,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )


def qwen_words():
    return tokenizer(
        QWEN_SPECIALS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )


def write(model, processor, words, template, folder):
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_tokens" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder, **SAVING)
    words.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    processor.chat_template = template
    return processor


def qwen_config(kind, words, rope_sections, vision, **text):
    """A configuration of a Qwen-VL class of the library."""
    ids = {name: words.convert_tokens_to_ids(name) for name in QWEN_SPECIALS}
    return kind(
        text_config=TEXT
        | {
            "vocab_size": len(words),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": rope_sections},
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
            "pad_token_id": ids["<|endoftext|>"],
        }
        | text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


# 32 wide: vLLM's attention on CPUs takes no narrower ones.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def qwen2_5_vl(folder):
    words = qwen_words()
    vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1, 3], "tokens_per_second": 4}
    config = qwen_config(tf.Qwen2_5_VLConfig, words, [4, 6, 6], vision, **HEADS)
    images = tf.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 1024, "longest_edge": 16384})
    videos = PillowVideos(images, (32, 48), 2)
    processor = with_videos(tf.Qwen2_5_VLProcessor, images, words, videos)
    write(tf.Qwen2_5_VLForConditionalGeneration(config), processor, words, QWEN_TEMPLATE, folder)
    # As published: one file for pictures and videos, with the older names of the sizes.
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    size = settings.pop("size")
    file.write_text(json.dumps(settings | {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}))
    return processor


QWEN2_VISION = {
    "depth": 4,
    "embed_dim": 32,
    "mlp_ratio": 2,
    "num_heads": 4,
    "patch_size": 4,
    "hidden_size": 64,
}


def qwen2_vl(folder):
    words = qwen_words()
    config = qwen_config(tf.Qwen2VLConfig, words, [4, 6, 6], QWEN2_VISION, **HEADS)
    images = tf.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 1024, "longest_edge": 16384})
    processor = with_videos(tf.Qwen2VLProcessor, images, words, PillowVideos(images, (32, 48), 2))
    return write(tf.Qwen2VLForConditionalGeneration(config), processor, words, QWEN_TEMPLATE, folder)


def qwen3_vl(folder):
    words = qwen_words()
    vision = QWEN_VISION | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
    config = qwen_config(tf.Qwen3VLConfig, words, [6, 5, 5], vision, head_dim=32)
    size = {"shortest_edge": 1024, "longest_edge": 16384}
    images = tf.Qwen2VLImageProcessorPil(patch_size=4, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = with_videos(tf.Qwen3VLProcessor, images, words, PillowVideos(images, (32, 48), 2))
    (folder / "video_preprocessor_config.json").write_text('{"size": {"shortest_edge": 1024, "longest_edge": 9216}}')
    return write(tf.Qwen3VLForConditionalGeneration(config), processor, words, QWEN_TEMPLATE, folder)


def llava_language(words):
    return TEXT | {
        "model_type": "llama",
        "vocab_size": len(words),
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def llava(folder):
    words = llava_words()
    config = tf.LlavaConfig(
        text_config=llava_language(words),
        vision_config=CLIP_VISION | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = tf.LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return write(tf.LlavaForConditionalGeneration(config), processor, words, LLAVA_TEMPLATE, folder)


def llava_next(folder):
    words = llava_words()
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = tf.LlavaNextConfig(
        text_config=llava_language(words) | {"model_type": "mistral"},
        vision_config=CLIP_VISION | {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 4},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    images = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    processor = tf.LlavaNextProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return write(tf.LlavaNextForConditionalGeneration(config), processor, words, LLAVA_TEMPLATE, folder)


SMOL_SPECIALS = [
    "<|im_start|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)),
]
SMOL_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def smol(folder, name):
    """A SmolVLM or Idefics3: the two have the same parts."""
    words = tokenizer(
        SMOL_SPECIALS,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_start|>",
        extra_special_tokens={"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"},
    )
    config = getattr(tf, f"{name}Config")(
        text_config=llava_language(words) | HEADS | {"tie_word_embeddings": False},
        vision_config=CLIP_VISION | {"image_size": 24, "patch_size": 4},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
    )
    pillow = {"SmolVLM": SmolVLMImageProcessorPil, "Idefics3": Idefics3ImageProcessorPil}[name]
    images = pillow(size={"longest_edge": 72}, max_image_size={"longest_edge": 24})
    kind, options = getattr(tf, f"{name}Processor"), {"image_seq_len": 9}
    if name == "SmolVLM":
        # The class asks for this package, which writes the number of frames of a video.
        processing_smolvlm.num2words = processing_smolvlm.num2words or str
        videos = SimpleNamespace(num_frames=1, fps=1)
        processor = with_videos(kind, images, words, videos, **options)
    else:
        processor = kind(images, words, **options)
    return write(getattr(tf, f"{name}ForConditionalGeneration")(config), processor, words, SMOL_TEMPLATE, folder)


INTERN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
INTERN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif p['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def internvl(folder):
    words = tokenizer(
        INTERN_SPECIALS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    config = tf.InternVLConfig(
        text_config=llava_language(words) | HEADS | {"model_type": "qwen2"},
        vision_config=CLIP_VISION | {"image_size": [24, 24], "patch_size": [4, 4], "use_qk_norm": True},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    size = {"height": 24, "width": 24}
    # As published: the whole processor asks for tiles, the image processor's own setting does not.
    images = tf.GotOcr2ImageProcessorPil(size=size, crop_to_patches=False, max_patches=8)
    plain = tf.CLIPImageProcessorPil(size=size)
    videos = PillowVideos(plain, (24, 24))
    processor = with_videos(tf.InternVLProcessor, images, words, videos, image_seq_length=9)
    return write(tf.InternVLForConditionalGeneration(config), processor, words, INTERN_TEMPLATE, folder)


def llava_onevision(folder):
    words = llava_words()
    pinpoints = [[24 * h, 24 * w] for h in range(1, 5) for w in range(1, 5)]
    config = tf.LlavaOnevisionConfig(
        text_config=llava_language(words) | {"model_type": "qwen2"},
        vision_config=CLIP_VISION
        | {"model_type": "siglip_vision_model", "image_size": 24, "patch_size": 4, "vision_use_head": False},
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_4",
    )
    images = tf.LlavaOnevisionImageProcessorPil(size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints)
    plain = tf.CLIPImageProcessorPil(size={"height": 24, "width": 24})
    processor = with_videos(
        tf.LlavaOnevisionProcessor,
        images,
        words,
        PillowVideos(plain, (24, 24)),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    return write(tf.LlavaOnevisionForConditionalGeneration(config), processor, words, LLAVA_TEMPLATE, folder)


FAMILIES = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "smolvlm": lambda folder: smol(folder, "SmolVLM"),
}
#: Families that share all code with another one. Only one test is about them.
TWINS = {"idefics3": lambda folder: smol(folder, "Idefics3")}
CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}
VIDEO = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
MULTI_AXIS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SHUFFLED = ("internvl", "smolvlm")


def clip(tower, folder):
    """A CLIP checkpoint whose vision tower is `tower`, in `folder`; its path."""
    words = tf.CLIPTokenizer(vocab=clip_vocab(), merges=[])
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 77}
    text |= {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = tf.CLIPConfig(text_config=text, vision_config=tower.config.to_dict(), projection_dim=24)
    torch.manual_seed(5)
    model = tf.CLIPModel(config)
    for parameter in model.text_model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.vision_model.load_state_dict(tower.state_dict())
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def clip_vocab():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {piece: i for i, piece in enumerate(pieces)}


def siglip_words(folder):
    """SigLIP's own tokenizer class, on a SentencePiece model with the special ids of the published ones."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what colour is the star seconds user assistant", " ".join(letters)] * 8),
        model_writer=pieces,
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        add_dummy_prefix=False,
        minloglevel=2,
    )
    file = folder / "spiece.model"
    file.write_bytes(pieces.getvalue())
    return tf.SiglipTokenizer(vocab_file=str(file), model_max_length=16)


def siglip(tower, folder):
    """A SigLIP checkpoint whose vision tower has one block more than `tower`, in `folder`; its path."""
    words = siglip_words(folder)
    text = {"vocab_size": len(words), "hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "projection_size": 48}
    text |= {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    vision = tower.config.to_dict() | {"vision_use_head": True, "num_hidden_layers": 4}
    torch.manual_seed(5)
    model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=vision))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
