"""Variants that are tried on the validation split: FSR with changes, and a weighted DPP."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fsr_core import CompressedTokens, VisualTokens, register
from fsr_core.focus import focus_order, focus_wanted, minmax
from fsr_core.greedy import pivots
from fsr_core.guided import GuidedFSR
from fsr_core.keys import Keys
from fsr_core.one_by_one import OneByOne, centred_keys, kept, raw_keys, unit_keys
from fsr_core.refine import absorbed, merge

__all__ = ["FACTORS", "Variant", "Volume", "register_variants"]


@dataclass(frozen=True, kw_only=True)
class Variant(GuidedFSR):
    """FSR with options that change one thing each; with the defaults it is `FSR`, token for token.

    alpha, rho, relevance_sign, floor, share, pull  as in `GuidedFSR`
    smooth    phi is the mean over 3 x 3 patches; over fewer at the edge
    distinct  Focus leaves out a token whose cosine to an earlier focus token is above this
    scan      takes the token of the largest gain * weight. The gain is the distance to the chosen tokens (eq. 5), the
              added coverage of all tokens as in SCOPE, or the added volume as in CDPruner (greedy MAP of a DPP whose
              kernel is weighted on both sides). The focus set counts as chosen in all three
    weight    (1 - pull) + pull * x, where x is (phi / max phi)**(1/3), or saliency or relevance, both scaled to 0..1
    kappa     as in `FSR`
    near      a token is merged only if its anchor is at most two rows and two columns away
    """

    name: ClassVar[str] = "variant"

    floor: float = 0.0
    share: float = 1.0
    smooth: bool = False
    distinct: float = 1.1
    scan: Literal["distance", "coverage", "dpp"] = "distance"
    weight: Literal["none", "phi", "saliency", "relevance"] = "none"
    kappa: float = 1.0
    near: bool = False

    def priority(self, sample: VisualTokens) -> Tensor:
        phi = super().priority(sample)
        if self.smooth:
            grid = phi.view(1, isqrt(len(phi)), -1)
            phi = torch.nn.functional.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False).flatten()
        return phi

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        phi, n = self.priority(sample), len(sample)
        alike = Keys(raw_keys(sample).unsqueeze(0)).cosine(torch.arange(n).unsqueeze(0))[0]
        order = focus_order(phi.unsqueeze(0))
        k_focus = int(focus_wanted(phi.unsqueeze(0), order, self.rho))
        focus: list[int] = []
        for token in order[0, :k_focus].tolist():
            if len(focus) < max(1, int(self.share * k)) and not (alike[token, focus] > self.distinct).any():
                focus.append(token)
        scan = self._scanned(alike.double().numpy(), focus, self._weight(sample, phi), k - len(focus))
        merged_into = self._merged(alike, focus, scan)
        features = sample.features.clone()
        anchors, values = merge(features.unsqueeze(0), merged_into.unsqueeze(0), phi.unsqueeze(0))
        features[anchors] = values
        parts = {"focus": torch.tensor(focus), "scan": torch.tensor(scan, dtype=torch.int64)}
        return kept(sample, **parts, features=features[focus + scan], merged_into=merged_into, priority=phi)

    def _weight(self, sample: VisualTokens, phi: Tensor) -> np.ndarray:
        if self.weight == "none":
            return np.ones(len(phi))
        if self.weight == "phi":
            drawn = (phi / phi.max().clamp(min=torch.finfo(torch.float32).tiny)).pow(1 / 3)
        else:
            drawn = minmax(getattr(sample, self.weight).unsqueeze(0))[0]
        return (1 - self.pull + self.pull * drawn).double().numpy()

    def _scanned(self, alike: np.ndarray, focus: list[int], weight: np.ndarray, count: int) -> list[int]:
        """`count` tokens after the focus set, one by one; `alike` [N, N] are cosines, `weight` [N]."""
        near, kernel = np.full(len(alike), -np.inf), alike.copy()  # the kernel is conditioned on the chosen tokens
        taken: list[int] = []
        while len(taken) < len(focus) + count:
            if len(taken) < len(focus):
                pick = focus[len(taken)]
            else:
                if self.scan == "distance":
                    gain = (1 - near) * weight
                elif self.scan == "coverage":
                    gain = (alike - near.clip(0)).clip(0).sum(1) * weight
                else:
                    gain = kernel.diagonal() * weight**2
                gain[taken] = -np.inf
                pick = int(gain.argmax())
            taken.append(pick)
            near = np.maximum(near, alike[pick])
            if self.scan == "dpp" and kernel[pick, pick] > 1e-10:
                kernel -= np.outer(kernel[pick], kernel[pick]) / kernel[pick, pick]
        return taken[len(focus) :]

    def _merged(self, alike: Tensor, focus: list[int], scan: list[int]) -> Tensor:
        """`merged_into` [N], as in `CompressedTokens`."""
        n = len(alike)
        if not scan:
            return torch.full((n,), -1)
        similarity, which = alike[scan].max(0)
        anchor = torch.tensor(scan)[which]
        if self.near:
            place = torch.stack([torch.arange(n) // isqrt(n), torch.arange(n) % isqrt(n)])
            similarity[(place - place[:, anchor]).abs().amax(0) > 2] = -torch.inf
        chosen = torch.zeros(1, n, dtype=torch.bool)
        chosen[0, focus + scan] = True
        into = absorbed(chosen, anchor.unsqueeze(0), similarity.unsqueeze(0), torch.tensor([len(scan)]), self.kappa)[0]
        return into.masked_fill(similarity == -torch.inf, -1)


FACTORS = ("distance", "residual", "distinct", "saliency", "rank", "length")


@dataclass(frozen=True, kw_only=True)
class Volume(OneByOne):
    """Greedy MAP of a DPP with the kernel w_i cos_ij w_j, as `CDPruner` with another weight.

    w = (floor + (1 - floor) r**alpha) * the product of the factors below, each to its power, 0 for none. r is relevance
    scaled to 0..1, or 1 without relevance. A factor is scaled so that its largest value is 1.

    distance   of the unit key to the mean unit key
    residual   length of the key less the mean key
    distinct   mean cosine to the others, negated, scaled to 0..1 (g of arXiv 2608.30263)
    saliency   attention of the class token
    rank       share of the tokens with less attention; a single sink leaves it as it is
    length     of the key
    centre     cosines are those of keys less their mean

    On `fsr-tiny` as it was, distance alone tells things from background. So the other factors are tried beside it.
    """

    name: ClassVar[str] = "volume"

    floor: float = 0.2
    alpha: float = 3.0
    distance: float = 0.0
    residual: float = 0.0
    distinct: float = 0.0
    saliency: float = 0.0
    rank: float = 0.0
    length: float = 0.0
    centre: bool = False

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        weight = self.weight(sample).float()
        unit = centred_keys(sample) if self.centre else unit_keys(sample)
        return kept(sample, scan=pivots(unit, weight, k), priority=weight)

    def weight(self, sample: VisualTokens) -> Tensor:
        """w of each token, [N] fp64."""
        weight = torch.ones(len(sample), dtype=torch.float64)
        if sample.relevance is not None:
            weight = self.floor + (1 - self.floor) * minmax(sample.relevance.unsqueeze(0))[0] ** self.alpha
        for name in FACTORS:
            if power := getattr(self, name):
                values = _factor(name, sample).double()
                weight = weight * (values / values.max().clamp(min=1e-30)).clamp(min=1e-6) ** power
        return weight


def _factor(name: str, sample: VisualTokens) -> Tensor:
    """The values of a factor of `Volume`, [N]."""
    unit, keys = unit_keys(sample), raw_keys(sample).float()
    if name == "distance":
        return torch.linalg.vector_norm(unit - unit.mean(0), dim=1)
    if name == "residual":
        return torch.linalg.vector_norm(keys - keys.mean(0), dim=1)
    if name == "distinct":
        return minmax(-(unit @ unit.mean(0)).unsqueeze(0))[0]
    if name == "saliency":
        return sample.saliency
    if name == "rank":
        return (sample.saliency.unsqueeze(1) > sample.saliency).double().mean(1)
    return torch.linalg.vector_norm(keys, dim=1)


def register_variants() -> None:
    """Makes both known by name, as `variant` and `volume`."""
    register("variant", Variant)
    register("volume", Volume)
