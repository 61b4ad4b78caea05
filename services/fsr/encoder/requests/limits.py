"""What a request may cost, checked before any of it joins a batch that others share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from fsr.common.errors import InvalidRequest
from fsr.encoder.requests.request_plan import RequestPlan
from fsr.encoder.settings import EncoderSettings
from fsr_core.backbones import VisualEncoder
from fsr_core.spread import comparisons

__all__ = ["RequestLimits"]

# A chunk of some 70 tokens has about 300 characters. A longer text is refused without a look at its tokens.
_CHUNK_CHARACTERS = 1024

# With keys of 1024 numbers, some 5 s of one CPU. On a GPU `fsr` may compare every two of 16,384 tokens, as many as the
# largest pictures of common checkpoints have, and `scope` may keep the 640 of 2880 that its paper does.
_COMPARISONS_ON_CPU, _COMPARISONS = 2**26, 2**29


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The options of the encoder that have these names."""

    max_image_pixels: int
    max_request_pixels: int
    max_request_tokens: int
    max_comparisons: int
    max_instruction_chunks: int
    decode_seconds: float

    @classmethod
    def of(cls, settings: EncoderSettings) -> RequestLimits:
        values = {field.name: getattr(settings, field.name) for field in fields(cls)}
        if settings.max_comparisons is None:
            values["max_comparisons"] = _COMPARISONS_ON_CPU if settings.device == "cpu" else _COMPARISONS
        return cls(**values)

    def check_instruction(self, model: VisualEncoder, instruction: str) -> None:
        """Raises InvalidRequest if the text tower would have too much of it to read, or nothing."""
        if not model.wants_instruction:
            return
        most = self.max_instruction_chunks
        try:
            too_long = len(instruction) > most * _CHUNK_CHARACTERS or model.instruction_chunks(instruction) > most
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        if too_long:
            raise InvalidRequest(
                f"instruction: takes more than {most} parts of about 70 tokens; shorten it to the question"
            )

    def check_tokens(self, count: int) -> None:
        """Raises InvalidRequest for more visual tokens than a request may have."""
        if count > self.max_request_tokens:
            raise InvalidRequest(
                f"images: {count} visual tokens before compression are more than {self.max_request_tokens};"
                " send fewer or smaller pictures or frames"
            )

    def check_work(self, plan: RequestPlan, images: Sequence[Sequence[int]]) -> list[float]:
        """What each image costs, as a share of what a whole request may.

        Args:
            images: for each image, the number of visual tokens of each of its tiles or frames.

        Raises InvalidRequest.
        """
        tokens = [sum(sizes) for sizes in images]
        self.check_tokens(sum(tokens))
        pairs = [_comparisons(plan, sizes) for sizes in images]
        if sum(pairs) > self.max_comparisons:
            raise InvalidRequest(
                f"budget: {plan.compressor.name} would compare {sum(pairs)} pairs of tokens to keep so many of"
                f" {sum(tokens)}, more than {self.max_comparisons}; keep fewer, or choose another method"
            )
        return [
            max(count / self.max_request_tokens, compared / self.max_comparisons)
            for count, compared in zip(tokens, pairs, strict=True)
        ]


def _comparisons(plan: RequestPlan, sizes: Sequence[int]) -> int:
    budget = plan.bounds.apply(plan.budget, sum(sizes)) if plan.bounds.narrows else plan.budget
    return comparisons(plan.compressor, sizes, budget, plan.spread)
