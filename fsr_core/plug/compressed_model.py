"""Compression inside your own script: `with compressed(model, processor, budget=64) as vlm: vlm.generate(...)`.

Within the context, the model's own `generate` keeps only as many visual tokens of each picture or video as the budget
allows. `generate` gets the shorter prompt, so its cache, beams and sampling work as usual. A hook on the language model
inserts the embeddings, positions and DeepStack features of that prompt. Leaving the context undoes both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fsr_core.backbones.registry import wrap_encoder
from fsr_core.budget import Budget, BudgetLike
from fsr_core.compressor import DEFAULT_METHOD, Compressor, create
from fsr_core.plug.prefill import Prefill
from fsr_core.plug.prompt_shortener import KeptPrompt, PromptShortener
from fsr_core.spread import SPREADS, Spread

__all__ = ["CompressedModel", "compressed"]

_VISUAL_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "pixel_attention_mask",
    "image_sizes",
    "image_sizes_videos",
    "batch_num_images",
    "image_grid_thw",
    "video_grid_thw",
    "second_per_grid_ts",
    "mm_token_type_ids",
)


class CompressedModel:
    """A model that generates from compressed visual tokens.

    Attributes:
        model: the model itself.
        last: what the latest call kept and saved, one entry for each prompt of its batch.
    """

    def __init__(self, model: Any, shorten: PromptShortener) -> None:
        self.model = model
        self.last: tuple[KeptPrompt, ...] = ()
        self._shorten = shorten
        self._original = model.generate
        self._lock = threading.Lock()
        self._prefill: Prefill | None = None
        self._open = True

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        instruction: str | Sequence[str] | None = None,
        budget: BudgetLike | None = None,
        method: str | Compressor | None = None,
        **options: Any,
    ) -> Any:
        """The model's own `generate` on compressed prompts. The sequences start with the caller's `input_ids`.

        Args:
            inputs, options: what the processor returned, and the options of the model's own `generate`.
            instruction: the question that guides compression, one for all prompts or one for each; by default the last
                user turn.
            budget, method: of this call alone, in the forms that `compressed` takes; by default those of the context.

        Raises:
            ValueError: `input_ids` are missing, a cache is given, the placeholders do not fit the pictures, or no
                instruction can be found; or there is no such budget or method. The message names the argument.
            RuntimeError: the context has been left.
        """
        if not self._open:
            raise RuntimeError("generate: the context of compressed() has been left; enter it again")
        ids = options.pop("input_ids", None) if inputs is None else inputs
        if not any(options.get(name) is not None for name in ("pixel_values", "pixel_values_videos")):
            with self._lock:  # without it, this call would get the embeddings of another thread's prompt
                self.last = ()
                return self._original(input_ids=ids, **options) if ids is not None else self._original(**options)
        if ids is None:
            raise ValueError("input_ids: are missing; pass on all that the processor returned")
        if options.get("past_key_values") is not None:
            raise ValueError("past_key_values: a compressed prompt cannot continue a cache; leave it out")
        visual = {name: options.pop(name) for name in _VISUAL_INPUTS if name in options}
        mask = options.pop("attention_mask", None)
        shorten = self._shorten.changed(
            None if method is None else _compressor(method, {}), None if budget is None else Budget.of(budget)
        )
        with self._lock:
            prefill, self.last = shorten(ids, mask, visual, instruction)
            if options.get("max_length") is not None:  # it includes the prompt, which is shorter now
                options["max_length"] -= ids.shape[1] - prefill.length
            deltas = getattr(self.model.model, "rope_deltas", None)
            self._prefill = prefill
            try:
                output = self._original(input_ids=prefill.input_ids, attention_mask=prefill.attention_mask, **options)
            finally:
                self._prefill = None
                if hasattr(self.model.model, "rope_deltas"):
                    self.model.model.rope_deltas = deltas
        return _with_prompt(output, ids, prefill.length)

    def _hook(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs if self._prefill is None else self._prefill.inputs(kwargs)


def _compressor(method: str | Compressor, options: Mapping[str, Any]) -> Compressor:
    """Raises ValueError."""
    if not isinstance(method, str):
        if options:
            raise ValueError("options: go with a method's name; give your own compressor its options when you make it")
        return method
    try:
        return create(method, **options)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("method.")) from error  # here the argument is called `options`


def _with_prompt(output: Any, ids: Tensor, length: int) -> Any:
    """The output with the caller's prompt in place of the shorter one, before the answer."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    prompts = ids.to(sequences.device).repeat_interleave(len(sequences) // len(ids), dim=0)
    whole = torch.cat([prompts, sequences[:, length:]], dim=1)
    if isinstance(output, Tensor):
        return whole
    output.sequences = whole
    return output


@contextmanager
def compressed(
    model: Any,
    processor: Any,
    budget: BudgetLike | None = None,
    *,
    keep_ratio: float | None = None,
    method: str | Compressor = DEFAULT_METHOD,
    options: Mapping[str, Any] | None = None,
    instruction: str | None = None,
    spread: Spread = "even",
    clip: str | None = None,
    family_options: Mapping[str, Any] | None = None,
) -> Iterator[CompressedModel]:
    """Compresses the visual tokens of a live model of the transformers library until the context ends.

    Args:
        model: a model of one of the supported families, on any device.
        processor: the checkpoint's own, as `AutoProcessor` gives it.
        budget: what to keep of each picture or video: tokens (`64`), a share of them (`0.11`), `"auto"`, which
            chooses by the evidence, or a `Budget`.
        keep_ratio: the share by its name. Give either `budget` or `keep_ratio`.
        method, options: name of a method and its options; or your own compressor as `method`, without options.
        instruction: the question that guides compression in every prompt; by default the last user turn of each.
        spread: "even" gives every tile or frame an equal part of the budget; "free" follows the evidence.
        clip, family_options: as in `fsr_core.backbones.load_encoder`.

    Raises:
        ValueError: an argument is wrong. The message names it, and nothing has been changed.
    """
    if (budget is None) == (keep_ratio is None):
        raise ValueError("budget: give either budget or keep_ratio")
    token_budget = Budget(keep_ratio=keep_ratio) if budget is None else Budget.of(budget)
    if spread not in SPREADS:
        raise ValueError(f"spread: {spread!r} is unknown; use {' or '.join(SPREADS)}")
    compressor = _compressor(method, options or {})
    if "generate" in getattr(model, "__dict__", {}):
        raise ValueError("model: its generate is already replaced; leave the other context first")
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        name = type(processor).__name__
        raise ValueError(f"processor: {name} is not a model's whole processor; pass what AutoProcessor gives for it")
    encoder = wrap_encoder(model, processor, clip=clip, family_options=family_options)
    shorten = PromptShortener(model, processor, encoder, compressor, token_budget, spread, instruction)
    vlm = CompressedModel(model, shorten)
    handle = model.get_decoder().register_forward_pre_hook(vlm._hook, with_kwargs=True)
    model.generate = vlm.generate
    try:
        yield vlm
    finally:
        vlm._open = False
        handle.remove()
        del model.generate
