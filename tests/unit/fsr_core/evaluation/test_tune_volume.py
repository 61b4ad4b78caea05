"""The weighted DPP that is tuned on the validation split, and the way in which it is tuned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.tune_volume import check, tune
from benchmarks.volume import FACTORS, Volume
from fsr_core import VisualTokens
from fsr_core.evaluation.method_configs import Run


def sample(seed: int, n: int) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, 30, generator=g) + 0.5
    return VisualTokens(keys, torch.rand(n, generator=g) ** 4, torch.randn(n, generator=g))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20), st.integers(1, 19), st.sampled_from(FACTORS), st.booleans())
def test_volume_is_the_greedy_dpp_of_its_weights(seed, n, k, factor, centre):
    s, k = sample(seed, n), min(k, n - 1)
    method = Volume(centre=centre, **{factor: 0.5})
    keys, weight = s.features.double().numpy(), method.weight(s).numpy()
    keys = keys - keys.mean(0) if centre else keys
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    kernel, chosen = weight[:, None] * (unit @ unit.T) * weight, []
    while len(chosen) < k:
        rest = [i for i in range(n) if i not in chosen]
        volumes = [np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1] for i in rest]
        chosen.append(rest[int(np.argmax(volumes))])
    # The last picks may have next to no volume; then they go by weight.
    exact = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1] > -12
    assert not exact or method.compress(s, k).index.tolist() == sorted(chosen)


def test_weight_is_that_of_the_formula():
    s = sample(1, 12)
    keys, r = s.features.double(), s.relevance.double()
    unit = keys / keys.norm(dim=1, keepdim=True)
    distance = (unit - unit.mean(0)).norm(dim=1)
    want = (0.3 + 0.7 * ((r - r.min()) / (r.max() - r.min())) ** 3) * (distance / distance.max()).sqrt()
    assert torch.allclose(Volume(floor=0.3, distance=0.5).weight(s), want, atol=1e-6)


def chances(run: Run, budget: int) -> np.ndarray:
    """Right answers of a method that `distance` helps much, `floor` 0.4 a little, and nothing else at all."""
    if run.method != "volume":
        return np.arange(400) % 2 * 1.0
    options = run.options[0]
    right = 200 + 60 * ("distance" in options) + 4 * (options.get("floor") == 0.4) - 9 * ("saliency" in options)
    return (np.random.default_rng(0).permutation(400) < right) * 1.0


def test_tuning_keeps_what_helps_beyond_its_error():
    chosen, rows = tune(chances, [8, 16])
    assert chosen == {"distance": 0.5, "floor": 0.4}
    assert [row["options"] for row in rows if row["kept"]] == [{}, {"distance": 0.5}, chosen]
    assert rows[-1]["right"] == pytest.approx(264 / 400)


def test_check_compares_with_every_method_at_every_budget():
    rows = check(chances, {"distance": 0.5}, [Run("fsr", "fsr"), Run("random", "random")], [16, 8])
    assert [(row["method"], row["budget"]) for row in rows] == [("fsr", 16), ("fsr", 8), ("random", 16), ("random", 8)]
    assert all(row["verdict"] == "wins" and row["difference"]["mean"] == pytest.approx(0.15) for row in rows)
