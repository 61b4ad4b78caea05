"""VisionZip (arXiv 2412.04467, section 2.3): dominant tokens unchanged, the others merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fsr_core.checks import check_number
from fsr_core.one_by_one import OneByOne, by_falling, kept, unit_keys
from fsr_core.segments import segment_sum
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["VisionZip"]


@dataclass(frozen=True)
class VisionZip(OneByOne):
    """Keeps the tokens with the most attention, and averages all others into evenly spaced ones by similarity of keys.

    contextual  share of the budget for contextual tokens; 10 of 64 in the paper

    The K_d most salient tokens are dominant (Algorithm 1). Of the remaining ones, in raster order, every
    (N - K_d) // K_c-th is a target. Each of the others joins the target whose key has the highest cosine to its own. A
    target becomes the mean of itself and of its group's mean (Algorithm 2).

    Departures: Algorithm 2 compares keys by their plain product, the authors' code and this by the cosine. The code
    counts the class token as a dominant one (there is none here). Before the projector, the code adds the group's mean
    to the target without halving the sum; after the projector this would double the token's length, so the sum is
    halved here.
    """

    name: ClassVar[str] = "visionzip"

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        check_number("contextual", self.contextual, 0, 1)

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        count = min(round(k * self.contextual), k - 1)
        order = by_falling(sample.saliency)
        dominant, rest = order[: k - count], order[k - count :].sort().values
        if count == 0:
            return kept(sample, focus=dominant, priority=sample.saliency)
        place = torch.arange(count, device=rest.device) * (len(rest) // count)
        targets = rest[place]
        is_target = torch.zeros(len(rest), dtype=torch.bool, device=rest.device)
        is_target[place] = True
        others = rest[~is_target]
        keys, features = unit_keys(sample), sample.features.float()
        group = (keys[others] @ keys[targets].T).argmax(1)
        total = segment_sum(features[others], group, count)
        size = group.bincount(minlength=count).unsqueeze(1)
        before = features[targets]
        rows = torch.where(size > 0, (before + total / size.clamp(min=1)) / 2, before)
        merged_into = torch.full_like(order, -1)
        merged_into[others] = targets[group]
        return kept(
            sample,
            focus=dominant,
            scan=targets,
            features=torch.cat([features[dominant], rows]),
            merged_into=merged_into,
            priority=sample.saliency,
        )
