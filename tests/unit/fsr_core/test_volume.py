"""Our own method against plain loops, and what its options do."""

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr_core import VisualTokens, create
from fsr_core.volume import VolumeFSR


def sample(seed: int, n: int, d: int = 30) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, d, generator=g) * torch.rand(n, 1, generator=g) + 0.5
    return VisualTokens(keys, torch.rand(n, generator=g), torch.randn(n, generator=g))


def plain_weights(s: VisualTokens) -> list[float]:
    """The weights with the defaults, computed over Python numbers."""
    lengths = [sqrt(sum(x * x for x in row)) for row in s.features.double().tolist()]
    r = s.relevance.double().tolist()
    scaled = [(x - min(r)) / (max(r) - min(r)) for x in r]
    return [(0.1 + 0.9 * x**3) * sqrt(one / max(lengths)) for x, one in zip(scaled, lengths, strict=True)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20), st.integers(1, 19))
def test_result_is_the_greedy_dpp_of_centred_keys(seed, n, k):
    s, k = sample(seed, n), min(k, n - 1)
    keys, weight = s.features.double().numpy(), np.array(plain_weights(s))
    unit = keys - keys.mean(0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    kernel, chosen = weight[:, None] * (unit @ unit.T) * weight, []
    while len(chosen) < k:
        rest = [i for i in range(n) if i not in chosen]
        volumes = [np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1] for i in rest]
        chosen.append(rest[int(np.argmax(volumes))])
    kept = VolumeFSR().compress(s, k)
    # The last picks may have next to no volume; then they go by weight.
    exact = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1] > -12
    assert not exact or kept.index.tolist() == sorted(chosen)
    assert torch.equal(kept.features, s.features[kept.index])
    assert kept.priority.tolist() == pytest.approx(weight.tolist(), rel=1e-5)


def test_sign_turns_relevance_round():
    s = VisualTokens(torch.eye(6), torch.ones(6), torch.tensor([1.0, 0, 0, 0, 0, -1]))
    assert VolumeFSR().compress(s, 1).index.tolist() == [0]
    assert VolumeFSR(relevance_sign="-").compress(s, 1).index.tolist() == [5]


def test_longer_keys_come_first_unless_length_is_left_out():
    s = VisualTokens(torch.eye(4) * torch.tensor([[1.0], [1], [3], [1]]), torch.ones(4))
    assert VolumeFSR().compress(s, 1).index.tolist() == [2]
    assert VolumeFSR(length=0).weight(s).tolist() == [1.0] * 4


def test_tokens_without_relevance_or_of_zeros_are_selected():
    assert VolumeFSR().compress(VisualTokens(torch.zeros(5, 3), torch.ones(5)), 2).index.tolist() == [0, 1]
    assert len(VolumeFSR().compress(VisualTokens(torch.ones(5, 3), torch.ones(5), torch.ones(5)), 3).index) == 3


@pytest.mark.parametrize("options", [{"floor": 2}, {"length": -1}, {"alpha": True}, {"relevance_sign": "*"}])
def test_bad_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create("fsr_volume", **options)
