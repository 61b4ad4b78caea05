"""The kernel in Triton's interpreter, on CPU, against the plain algorithm. `make test-triton` runs it."""

import os

import pytest
import torch

from fsr_core import FSR, Budget, VisualTokens, keys, picks

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """Triton reads the variable when the kernel's module is imported."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run `make test-triton`"


def similarities(batch, n, *, ties):
    features = torch.randn(batch, n, 40, generator=torch.Generator().manual_seed(n))
    return keys.Keys(features.round() if ties else features)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("batch", "n", "steps"), [(1, 1, 3), (1, 40, 39), (3, 100, 20), (2, 144, 150)])
def test_kernel_makes_the_picks_of_the_plain_algorithm(batch, n, steps, ties):
    from fsr_core.picks_kernel import kernel_picks

    some = similarities(batch, n, ties=ties)
    near = some.cosine(torch.zeros(batch, 1, dtype=torch.int64))[:, 0].clone()
    near[:, 0] = torch.inf
    same = near.clone()
    tokens, nearest = kernel_picks(some.matrix, near, steps)
    plain = list(picks.row_by_row(some, same, steps))
    whole = min(steps, n - 1)  # after that no token is left
    assert torch.equal(tokens[:, :whole], torch.cat([part.tokens for part in plain], 1)[:, :whole])
    assert torch.equal(nearest, torch.cat([part.nearest for part in plain], 1))
    assert torch.equal(near, same)


def test_kernel_keeps_the_tokens_that_the_host_keeps(monkeypatch):
    from fsr_core.picks_kernel import kernel_picks

    generator = torch.Generator().manual_seed(0)
    samples = [VisualTokens(torch.randn(90, 30, generator=generator), torch.rand(90)) for _ in range(3)]
    budgets = [20, Budget(auto=True, radius=0.8), 5]
    method = FSR(rho=0.2)
    on_host = method.compress_batch(samples, budgets)
    calls = []
    monkeypatch.setattr(picks, "_host_picks", lambda *given: calls.append(given[2]) or kernel_picks(*given))
    by_kernel = method.compress_batch(samples, budgets)
    assert calls
    for one, other in zip(on_host, by_kernel, strict=True):
        assert torch.equal(one.index, other.index) and torch.equal(one.merged_into, other.merged_into)
        assert torch.equal(one.features, other.features)


def test_one_launch_makes_all_picks_of_a_batch(monkeypatch):
    from fsr_core import picks_kernel

    launches, launch = [], picks_kernel._pick.run
    monkeypatch.setattr(picks_kernel._pick, "run", lambda *a, **k: launches.append(k["grid"]) or launch(*a, **k))
    monkeypatch.setattr(picks, "_host_picks", picks_kernel.kernel_picks)
    samples = [VisualTokens(torch.randn(90, 30), torch.rand(90)) for _ in range(3)]
    FSR(rho=1e-6).compress_batch(samples, [40, 10, 25])
    assert launches == [(3,)]
