"""A checkpoint that answers questions about pictures in this process, with any budget and method."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from fsr_core.backbones import dtype_of, fingerprint, resolve
from fsr_core.budget import BudgetLike
from fsr_core.compressor import Compressor
from fsr_core.plug.compressed_model import compressed
from fsr_core.plug.prompt_shortener import KeptPrompt

__all__ = ["LocalAnswer", "LocalModel"]


@dataclass(frozen=True)
class LocalAnswer:
    """The text of an answer, and what was kept of the picture."""

    text: str
    kept: KeptPrompt


class LocalModel:
    """A model and its processor. Greedy answers, one at a time. Close it, or use it as a context."""

    def __init__(self, model: str, *, clip: str | None = None, device: str = "cpu", dtype: str = "fp32") -> None:
        """`model` and `clip` as for `fsr_core.backbones.load_encoder`. Raises ValueError, naming the argument."""
        folder = resolve(model)
        logging.disable_progress_bar()  # of weights that are loaded in a second or in minutes; it goes to stderr
        try:
            self._processor = AutoProcessor.from_pretrained(str(folder))
            loaded: Any = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=dtype_of(dtype))
            self._model = loaded.to(device).eval()
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"model: {model!r} cannot be loaded ({reason}); check its files and the device") from error
        finally:
            logging.enable_progress_bar()
        self.fingerprint = fingerprint(folder)
        self._contexts = ExitStack()
        self._vlm = self._contexts.enter_context(compressed(self._model, self._processor, 1.0, clip=clip))

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the compression off the model."""
        self._contexts.close()

    def ask(
        self,
        image: Image.Image,
        question: str,
        *,
        budget: BudgetLike,
        method: str | Compressor | None = None,
        max_tokens: int = 64,
    ) -> LocalAnswer:
        """Asks one question about an RGB picture. A budget of 1.0 keeps all tokens.

        Raises ValueError, naming the argument.
        """
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = self._processor(images=[[image]], text=[text], return_tensors="pt")
        inputs = inputs.to(self._model.device, self._model.dtype)
        tokenizer = self._processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with torch.inference_mode():
            ids = self._vlm.generate(
                **inputs,
                instruction=question,
                budget=budget,
                method=method,
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
            )
        new = ids[0, inputs["input_ids"].shape[1] :]
        return LocalAnswer(tokenizer.decode(new, skip_special_tokens=True).strip(), self._vlm.last[0])
