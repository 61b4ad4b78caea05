"""A model plugin for lmms-eval: it runs real checkpoints on POPE, GQA, TextVQA, MME and other tasks at any budget.

    python -m lmms_eval --model fsr --model_args pretrained=llava-hf/llava-1.5-7b-hf,budget=64 --tasks pope,gqa

lmms-eval finds it by the entry point `lmms_eval.models` when both are installed in one environment. lmms-eval's
dependencies conflict with those of the services, so that environment holds `fsr_core` alone (see docs/results.md).
Only tasks that generate answers are supported, not those that ask for the likelihood of given answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lmms_eval import utils
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from fsr_core import DEFAULT_METHOD, Budget, create
from fsr_core.backbones.registry import FAMILIES
from fsr_core.pictures import to_rgb
from fsr_core.plug.compressed_model import CompressedModel, compressed
from fsr_core.spread import Spread
from fsr_core.tiny import WEIGHTS

__all__ = ["CompressedVLM", "parse_budget"]

_LONGEST_ANSWER = 1024  # tokens, unless the task says otherwise
_FAMILY_OPTIONS = frozenset(name for family in FAMILIES.values() for name in family.options)


def parse_budget(value: object) -> Budget | None:
    """The budget of an argument: 64 is tokens, 0.11 is a keep ratio, `auto` goes by the evidence, `all` gives None.

    Raises:
        ValueError: the value is none of these.
    """
    if value == "all":
        return None
    if value == "auto":
        return Budget(auto=True)
    try:
        number = float(str(value))
    except ValueError:
        raise ValueError(f"budget: {value!r} is neither tokens (64) nor a keep ratio (0.11) nor auto nor all") from None
    return Budget(tokens=int(number)) if number.is_integer() and "." not in str(value) else Budget(keep_ratio=number)


class CompressedVLM(lmms):
    """A checkpoint that answers from compressed visual tokens.

    pretrained   hub id or folder; `fsr-tiny` is the embedded model
    budget       tokens (64), a keep ratio (0.11), auto, or all
    method       one of `fsr_core.methods()`
    clip         folder or hub id of the CLIP (or SigLIP) checkpoint that computes relevance, or none
    spread       even or free: how the budget spreads over the tiles of a picture

    Any other argument is an option: of the checkpoint's family if any family has an option of that name
    (`relevance=instruction`), else of the method. Raises ValueError, naming the argument, for one that is unknown or
    missing.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "fsr-tiny",
        budget: object = 64,
        method: str = DEFAULT_METHOD,
        clip: str | None = None,
        spread: Spread = "even",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        parsed_budget = parse_budget(budget)
        family_options = {name: options.pop(name) for name in _FAMILY_OPTIONS & options.keys()}
        compressor = create(method, **options)
        source = str(WEIGHTS) if pretrained == "fsr-tiny" else pretrained
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1
        target = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = AutoProcessor.from_pretrained(source)
        self.processor.tokenizer.padding_side = "left"
        model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
        self.model = model.to(target).eval()
        self.vlm: CompressedModel | None = None  # None keeps every token
        self._contexts = ExitStack()
        if parsed_budget is not None:
            # Entered once, because that reads CLIP's text tower from disk; `clean` leaves it.
            context = compressed(
                self.model,
                self.processor,
                parsed_budget,
                method=compressor,
                spread=spread,
                clip=clip,
                family_options=family_options,
            )
            self.vlm = self._contexts.enter_context(context)

    def clean(self) -> None:
        """Releases the model; lmms-eval calls this when it no longer needs it."""
        self._contexts.close()
        self.vlm = None
        super().clean()

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers in the order of the requests, greedy or sampled as each task's generation options say."""

        def longest_first(arguments: Sequence[Any]) -> tuple[int, str]:
            return -len(arguments[0]), arguments[0]

        # Requests of one batch share their generation options.
        ordered = utils.Collator([request.args for request in requests], longest_first, grouping=True)
        answers: list[str] = []
        with tqdm(total=len(requests), disable=self.rank != 0, unit="answer") as bar:
            for chunk in ordered.get_batched(n=self.batch_size, batch_fn=None):
                answers += self._answers(list(chunk))
                bar.update(len(chunk))
        in_order: list[str] = ordered.get_original(answers)
        return in_order

    def _answers(self, chunk: list[tuple[Any, ...]]) -> list[str]:
        texts, pictures, questions = [], [], []
        for context, _, visuals_of, doc_id, task, split in chunk:
            visuals = visuals_of(self.task_dict[task][split][doc_id]) or []
            if any(not isinstance(visual, Image.Image) for visual in visuals):
                raise ValueError(f"task {task!r}: has visuals other than pictures; only pictures are supported")
            pictures.append([to_rgb(visual) for visual in visuals])
            questions.append(context.replace("<image>", "").strip())
            parts = [*({"type": "image"} for _ in visuals), {"type": "text", "text": questions[-1]}]
            message = [{"role": "user", "content": parts}]
            texts.append(self.processor.apply_chat_template(message, add_generation_prompt=True))
        images = pictures if any(pictures) else None
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        task_options = dict(chunk[0][1])
        stops = task_options.pop("until", None) or []
        generation = _generation_options(task_options)
        with torch.inference_mode():
            if self.vlm is None:
                ids = self.model.generate(**inputs, **generation)
            else:
                ids = self.vlm.generate(**inputs, instruction=questions, **generation)
        answers = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [_cut(text, [stops] if isinstance(stops, str) else stops) for text in answers]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("this task asks for likelihoods; choose one that generates, such as its *_gen form")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("this task asks in several rounds, which is not supported; choose one that asks once")


def _generation_options(task_options: dict[str, Any]) -> dict[str, Any]:
    """A task's options as arguments of `generate`. Temperature 0 is greedy."""
    sample = float(task_options.get("temperature") or 0) > 0
    options: dict[str, Any] = {
        "max_new_tokens": task_options.get("max_new_tokens", _LONGEST_ANSWER),
        "num_beams": task_options.get("num_beams", 1),
        "do_sample": sample,
    }
    if sample:
        options |= {key: task_options[key] for key in ("temperature", "top_p") if task_options.get(key)}
    return options


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string, without outer white space."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
