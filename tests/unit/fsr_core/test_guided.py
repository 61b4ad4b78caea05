"""Guided FSR against plain loops, and its three differences from FSR."""

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr_core import FSR, VisualTokens, create
from fsr_core.guided import GuidedFSR


def sample(seed: int, n: int, d: int = 12) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    return VisualTokens(
        torch.randn(n, d, generator=g), torch.rand(n, generator=g) ** 6, torch.randn(n, generator=g)
    )  # fmt: skip


def plain(s: VisualTokens, k: int) -> tuple[list[int], list[int]]:
    """Focus and scan indices, computed over Python numbers."""

    def minmax(values):
        low, high = min(values), max(values)
        return [(v - low) / (high - low) for v in values]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows, everyone = s.features.double().tolist(), range(len(s))
    scaled = zip(minmax(s.saliency.double().tolist()), minmax(s.relevance.double().tolist()), strict=True)
    phi = [r**3 * (0.2 + 0.8 * v) for v, r in scaled]
    order = sorted(everyone, key=lambda i: (-phi[i], i))
    wanted = next(c for c in range(1, len(s) + 1) if sum(phi[i] for i in order[:c]) >= 0.9 * sum(phi))
    focus = order[: min(wanted, max(1, k // 4))]
    scan: list[int] = []
    while len(focus) + len(scan) < k:
        gaps = {}
        for i in everyone:
            if i not in focus and i not in scan:
                distance = min(1 - cosine(rows[i], rows[j]) for j in [*focus, *scan])
                gaps[i] = distance * (0.2 + 0.8 * (phi[i] / max(phi)) ** (1 / 3))
        scan.append(max(gaps, key=lambda i: (gaps[i], -i)))
    return sorted(focus), sorted(scan)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 22), st.integers(1, 21))
def test_result_equals_plain_loops(seed, n, k):
    s, k = sample(seed, n), min(k, n - 1)
    kept = GuidedFSR(pull=0.8).compress(s, k)
    focus, scan = plain(s, k)
    assert kept.index[kept.stage == 0].tolist() == focus
    assert kept.index[kept.stage == 1].tolist() == scan
    assert torch.equal(kept.features, s.features[kept.index])
    assert kept.focus_count == len(focus) <= kept.focus_wanted


def test_floor_keeps_relevant_token_without_saliency():
    """The most relevant token is the least salient: its phi is 0 in eq. 3, and the largest with the floor."""
    s = VisualTokens(torch.eye(6), torch.tensor([0.0, 1, 2, 3, 4, 5]), torch.tensor([1.0, 0, 0, 0, 0, 0.2]))
    assert FSR().compress(s, 1).index.tolist() == [5]
    assert GuidedFSR().compress(s, 1).index.tolist() == [0]
    assert GuidedFSR(floor=0.0).compress(s, 1).index.tolist() == [5]


def test_share_bounds_focus():
    s = VisualTokens(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.full((40,), 0.5))
    assert FSR().compress(s, 12).focus_count == 12  # all tokens have the same priority, so K_F is 36
    assert [GuidedFSR(share=share).compress(s, 12).focus_count for share in (0.0, 0.25, 1.0)] == [1, 3, 12]


def test_pull_raises_priority_of_scan():
    means = {}
    for pull in (0.0, 0.8):
        kept = [GuidedFSR(pull=pull).compress(sample(i, 80), 16) for i in range(20)]
        means[pull] = torch.stack([one.priority[one.index[one.stage == 1]].mean() for one in kept]).mean()
    assert means[0.8] > 1.3 * means[0.0]


@pytest.mark.parametrize("options", [{"floor": 2}, {"share": -1}, {"pull": True}, {"rho": 0}, {"relevance_sign": "*"}])
def test_bad_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("fsr_guided", **options)
