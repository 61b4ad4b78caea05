"""Figures of a model, counted on the library's classes on the meta device, which takes no memory."""

from __future__ import annotations

import logging
from math import ceil
from typing import Any

import torch
import transformers as tf

from fsr_core.backbones.registry import FAMILIES
from fsr_core.planning.figures import ModelFigures
from fsr_core.savings import Geometry

__all__ = ["count", "read_config"]

_REASON = 200  # characters of a reason
_CLIP_TEXT = 123_060_480 + 768 * 768 + 768 * 1024  # CLIP-L's text tower and both projections
_CLIP_WIDTH = 1024  # of CLIP-L's vision tower
_PIXELS = 1024  # width and height of the usual picture, for towers that take pictures as large as they are
_FRAMES = 32  # of the usual video of LLaVA-OneVision
# Views of a picture that is cut into the most tiles, with the view of the whole picture.
_VIEWS = {"llava_next": 5, "internvl": 13, "smolvlm": 17, "idefics3": 17}
_WINDOW = 64  # patches in a window of Qwen2.5-VL's tower


def read_config(model: str) -> Any:
    """The configuration of a folder or hub id. Raises ValueError with the reason, in one line."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # the error says it again
    try:
        return tf.AutoConfig.from_pretrained(model)
    except Exception as error:  # the library raises OSError, ValueError, KeyError and validation errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason[:_REASON].rstrip(".")) from error
    finally:
        hub.setLevel(level)


def count(name: str, config: Any) -> ModelFigures:
    """The figures of a model with this configuration of the library.

    Raises:
        ValueError: its family is not served, or the configuration does not fit it.
    """
    if config.model_type not in FAMILIES:
        served = ", ".join(sorted(FAMILIES))
        raise ValueError(f"model: {name} is of type {config.model_type!r}, which is not served; served: {served}")
    try:
        with torch.device("meta"):
            whole: Any = tf.AutoModelForImageTextToText.from_config(config)
        tower, projector, text_side = _encoder_parameters(whole)
        views, patches, tokens = _usual_picture(config)
        if tokens < 1:
            raise ValueError("a picture has no visual token")
        return ModelFigures(
            name=name,
            family=config.model_type,
            geometry=Geometry.from_config(config.text_config, dtype_bytes=2),
            decoder_parameters=_parameters(whole.get_decoder(), whole.lm_head),
            encoder_parameters=tower + projector + text_side,
            visual_tokens=tokens,
            tower_flops=views * (2 * tower * patches + _attention_flops(config, patches)) + 2 * projector * tokens,
            deepstack_layers=len(getattr(config.vision_config, "deepstack_visual_indexes", ())),
        )
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"model: the configuration of {name} is incomplete or wrong ({error}); repair it") from error


def _parameters(*modules: Any) -> int:
    """Of these modules together; a tensor that two of them share counts once."""
    unique = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    return sum(unique.values())


def _encoder_parameters(whole: Any) -> tuple[int, int, int]:
    """Of the vision tower without blocks that are not read, of the projector, and of CLIP's text side."""
    core = whole.model
    if hasattr(core, "visual"):
        return _parameters(core.visual), 0, 0
    if hasattr(core, "connector"):
        return _parameters(core.vision_model), _parameters(core.connector), 0
    encoder = core.vision_tower.encoder
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    unread = sum(_parameters(layer) for layer in layers[_blocks_read(whole.config, len(layers)) :])
    vision = whole.config.vision_config
    text_side = _CLIP_TEXT if (vision.model_type, vision.hidden_size) == ("clip_vision_model", _CLIP_WIDTH) else 0
    return _parameters(core.vision_tower) - unread, _parameters(core.multi_modal_projector), text_side


def _blocks_read(config: Any, blocks: int) -> int:
    layer = getattr(config, "vision_feature_layer", -1)
    return int(layer if layer >= 0 else blocks + 1 + layer)


def _usual_picture(config: Any) -> tuple[int, int, int]:
    """Views of the usual picture, patches of each view, and visual tokens of all of them."""
    vision, family = config.vision_config, config.model_type
    if hasattr(vision, "spatial_merge_size"):  # Qwen: as large as it is
        side = round(_PIXELS / (vision.patch_size * vision.spatial_merge_size))
        return 1, (side * vision.spatial_merge_size) ** 2, side**2
    image, patch = _side(vision.image_size), _side(vision.patch_size)
    side, views = image // patch, _VIEWS.get(family, 1)
    if family == "llava_onevision":  # a video, whose frames are pooled 2 x 2
        return _FRAMES, side**2, _FRAMES * ceil(side / 2) ** 2
    if family == "internvl":
        return views, side**2 + 1, views * int(side * config.downsample_ratio) ** 2
    if family in ("smolvlm", "idefics3"):
        return views, side**2, views * (side // config.scale_factor) ** 2
    return views, side**2 + 1, views * side**2


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _attention_flops(config: Any, patches: int) -> int:
    """Of scores and values in every block that is read; of Qwen2.5-VL most blocks attend within windows."""
    vision = config.vision_config
    blocks = vision.depth if hasattr(vision, "depth") else _blocks_read(config, vision.num_hidden_layers)
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    everywhere = len(getattr(vision, "fullatt_block_indexes", range(blocks)))
    return int(4 * width * patches * (everywhere * patches + (blocks - everywhere) * min(patches, _WINDOW)))
