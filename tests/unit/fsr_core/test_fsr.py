from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fsr_core import FSR, Budget, CompressedTokens, VisualTokens, create, keys, methods, picks, scan
from fsr_core.segments import segment_sum
from helpers import reference


def sample(seed: int, n: int, d: int = 6, *, dk: int | None = None, relevance: bool = True) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    return VisualTokens(
        features=torch.randn(n, d, generator=g),
        saliency=torch.rand(n, generator=g),
        relevance=torch.randn(n, generator=g) if relevance else None,
        keys=None if dk is None else torch.randn(n, dk, generator=g),
    )


def one_by_one(keys, near, steps, chunk):
    """In place of `greedy_picks`: the plain algorithm."""
    return picks.row_by_row(keys, near, max(steps))


SCANNING = FSR(rho=1e-6)  # Focus stops at its first token, so that Scan has something to do


def same(a: CompressedTokens, b: CompressedTokens) -> bool:
    tensors = ("features", "index", "stage", "merged_into", "priority")
    return all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors) and (
        (a.focus_count, a.focus_wanted) == (b.focus_count, b.focus_wanted)
    )


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 24), st.integers(1, 26), st.booleans(), st.booleans())


@settings(max_examples=120, deadline=None)
@given(sizes, st.sampled_from([0.3, 0.9, 1.0]), st.sampled_from([0.0, 1.0, 2.5]))
def test_result_equals_plain_loops(size, rho, kappa):
    seed, n, budget, relevance, own_keys = size
    s = sample(seed, n, dk=5 if own_keys else None, relevance=relevance)
    keys = s.features if s.keys is None else s.keys
    as_list = None if s.relevance is None else s.relevance.double().tolist()
    want = reference.fsr(
        s.features.double().tolist(), keys.double().tolist(), s.saliency.double().tolist(), as_list, budget,
        rho=rho, kappa=kappa,
    )  # fmt: skip
    got = FSR(rho=rho, kappa=kappa).compress(s, budget)
    assert (got.index.tolist(), got.stage.tolist(), got.merged_into.tolist()) == want[:3]
    assert torch.allclose(got.features, torch.tensor(want[3]), atol=1e-5)
    assert (got.focus_count, got.focus_wanted) == want[4:]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from([1, 7, 7, 30]), st.integers(1, 32), st.booleans()), max_size=6
    ),
    st.sampled_from([FSR(), FSR(alpha=2.5, beta=0.7)]),  # powers that are products, and that are none
)
@example([(seed, 30, 20, True) for seed in range(6)], FSR(alpha=2.5, beta=0.7))
def test_batch_equals_single_samples(rows, method):
    samples = [sample(seed, n, relevance=relevance) for seed, n, _, relevance in rows]
    budgets = [Budget(auto=True, radius=0.8) if k % 5 == 0 else k for _, _, k, _ in rows]
    together = method.compress_batch(samples, budgets)
    assert all(same(a, method.compress(s, k)) for a, s, k in zip(together, samples, budgets, strict=True))


def test_batch_of_576_tokens_equals_single_samples():
    samples = [sample(i, 576, 256) for i in range(4)]
    budgets = [16, 64, 192, 576]
    together = SCANNING.compress_batch(samples, budgets)
    assert [kept.focus_count for kept in together] == [1, 1, 1, 1]
    assert all(same(a, SCANNING.compress(s, k)) for a, s, k in zip(together, samples, budgets, strict=True))


def test_batch_when_it_is_too_large_for_one_then_its_parts_equal_single_samples(monkeypatch):
    samples, budgets, sizes = [sample(i, 576, 256) for i in range(5)], [16, 576, 192, 64, 192], []
    compress = FSR._compress_equal
    monkeypatch.setattr(FSR, "_compress_equal", lambda *args: sizes.append(len(args[1])) or compress(*args))
    monkeypatch.setattr("fsr_core.fsr.CPU_BATCH", 3 * 576 * 256 - 1)
    together = SCANNING.compress_batch(samples, budgets)
    assert sizes == [2, 2, 1]  # the sample that keeps all its tokens is apart
    assert all(same(a, SCANNING.compress(s, k)) for a, s, k in zip(together, samples, budgets, strict=True))


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_result_has_k_tokens_and_unchanged_focus(size):
    seed, n, budget, relevance, _ = size
    s = sample(seed, n, relevance=relevance)
    kept = FSR(kappa=5.0).compress(s, budget)
    assert len(kept) == len(kept.features) == min(budget, n)
    assert torch.equal(kept.index, kept.index.unique(sorted=True))
    focus = kept.stage == 0
    assert int(focus.sum()) == kept.focus_count
    assert torch.equal(kept.features[focus], s.features[kept.index[focus]])
    assert set(kept.merged_into[kept.merged_into >= 0].tolist()) <= set(kept.index[~focus].tolist())
    assert (kept.merged_into[kept.index] == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(1, 20))
def test_shuffled_tokens_keep_the_same(seed, n, budget):
    s = sample(seed, n)
    p = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = VisualTokens(s.features[p], s.saliency[p], s.relevance[p])
    kept = FSR().compress(s, budget)
    assume(kept.priority.max() > 0)  # else all tie, and ties go by index
    assert set(p[FSR().compress(shuffled, budget).index].tolist()) == set(kept.index.tolist())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9), st.integers(2, 4))
def test_scan_radius_is_at_most_twice_the_best(seed, n, budget):
    s = sample(seed, n, 3)
    kept = FSR(rho=0.3).compress(s, budget)
    # The chord on the unit sphere is a metric that orders pairs as cosine distance does.
    units = torch.nn.functional.normalize(s.features.double(), dim=1)
    distance = torch.cdist(units, units)
    focus = kept.index[kept.stage == 0].tolist()
    rest = [i for i in range(n) if i not in focus]
    radius = distance[:, kept.index].min(1).values.max()
    best = min(distance[:, [*focus, *extra]].min(1).values.max() for extra in combinations(rest, budget - len(focus)))
    assert radius <= 2 * best + 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    s = sample(3, 40, 16)
    low = VisualTokens(s.features.to(dtype), s.saliency.to(dtype), s.relevance.to(dtype))
    kept = SCANNING.compress(low, 12)
    assert kept.features.dtype == dtype and kept.focus_count == 1
    assert kept.priority.dtype == torch.float32
    same_values = VisualTokens(low.features.float(), low.saliency.float(), low.relevance.float())
    assert torch.equal(kept.index, SCANNING.compress(same_values, 12).index)


def test_budget_of_all_changes_nothing():
    s = sample(1, 9)
    for budget in (9, 10, Budget(keep_ratio=1.0)):
        kept = FSR().compress(s, budget)
        assert torch.equal(kept.features, s.features)
        assert kept.index.tolist() == list(range(9))
        assert (kept.merged_into == -1).all()


def test_degenerate_scores_keep_k():
    zeros = FSR().compress(
        VisualTokens(torch.eye(5), torch.tensor([0.0, 0, 0, 0, 1]), torch.tensor([1.0, 1, 1, 1, 0])), 2
    )
    assert zeros.priority.tolist() == [0.0] * 5
    assert zeros.index.tolist()[0] == 0
    constant = FSR().compress(VisualTokens(torch.eye(4), torch.full((4,), 0.5)), 2)
    assert constant.priority.tolist() == [1.0] * 4
    assert (constant.focus_wanted, constant.focus_count, constant.index.tolist()) == (4, 2, [0, 1])
    twins = FSR(rho=0.2).compress(VisualTokens(torch.ones(6, 3), torch.rand(6)), 4)
    assert len(twins.index.unique()) == 4


def test_relevance_sign_and_centring_change_the_choice():
    s = sample(5, 60, 8)
    plus, minus = FSR().compress(s, 8), FSR(relevance_sign="-").compress(s, 8)
    negated = FSR().compress(VisualTokens(s.features, s.saliency, -s.relevance), 8)
    assert same(minus, negated) and not same(plus, minus)
    shifted = VisualTokens(s.features + 50, s.saliency, s.relevance)
    centred = FSR(centre_keys=True, kappa=0.0)
    assert torch.equal(centred.compress(shifted, 20).index, centred.compress(s, 20).index)


def test_auto_budget_stops_at_radius_within_bounds():
    s = sample(2, 80, 4)
    counts = [len(FSR(rho=0.2).compress(s, Budget(auto=True, radius=r))) for r in (0.0, 0.1, 0.5, 2.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2]
    bounded = FSR().compress(s, Budget(auto=True, radius=0.0, min_tokens=3, max_tokens=7))
    assert len(bounded) == 7
    assert len(FSR(rho=0.01).compress(s, Budget(auto=True, radius=2.0, min_tokens=9))) == 9


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (30, 9), (100, 100)])
def test_steep_exponents_equal_plain_loops(alpha, beta):
    """In single precision most priorities would be 0: ties by index, and merges without weights."""
    for seed in range(8):
        s = sample(seed, 40)
        lists = (s.features.double().tolist(), s.saliency.double().tolist(), s.relevance.double().tolist())
        want = reference.fsr(lists[0], lists[0], *lists[1:], 20, alpha=alpha, beta=beta, rho=1.0 - 1e-9, kappa=2.0)
        got = FSR(alpha=alpha, beta=beta, rho=1.0 - 1e-9, kappa=2.0).compress(s, 20)
        assert (got.index.tolist(), got.stage.tolist(), got.merged_into.tolist()) == want[:3]
        assert torch.allclose(got.features, torch.tensor(want[3]), atol=1e-5)
        assert (got.focus_count, got.focus_wanted) == want[4:]


@pytest.mark.parametrize("shape", [(60, 5), (60, 100), (60, 4096), (300, 40)])
@pytest.mark.parametrize("kind", [lambda rows: rows, lambda rows: rows.abs() + 3, lambda rows: (100 * rows).half()])
@pytest.mark.parametrize("centre", [False, True])
def test_auto_budget_of_radius_0_keeps_no_duplicate(shape, kind, centre, monkeypatch):
    """Every token three times, in places that are not in order; the focus is one of them."""
    n, width = shape
    generator = torch.Generator().manual_seed(n)
    rows = kind(torch.randn(n // 3, width, generator=generator))
    copies = rows.repeat(3, 1)[torch.randperm(n, generator=generator)]
    s, budget = VisualTokens(copies, torch.rand(n, generator=generator)), Budget(auto=True, radius=0.0)
    method = FSR(rho=1e-6, centre_keys=centre)
    kept = method.compress(s, budget)
    assert len(kept) == n // 3 == len(copies[kept.index].float().unique(dim=0))
    monkeypatch.setattr(keys, "MATRIX_TOKENS", 0)
    assert torch.equal(method.compress(s, budget).index, kept.index)
    monkeypatch.setattr(scan, "greedy_picks", one_by_one)
    assert torch.equal(method.compress(s, budget).index, kept.index)


@pytest.mark.parametrize("width", [5, 100])
def test_auto_budget_of_radius_0_keeps_one_zero_token(width, monkeypatch):
    """A zero key has no direction, but it is equal to another one."""
    features = torch.randn(60, width, generator=torch.Generator().manual_seed(1))
    features[7::4] = 0
    s, budget = VisualTokens(features, torch.linspace(1, 0, 60)), Budget(auto=True, radius=0.0)
    kept = SCANNING.compress(s, budget)
    different = len(features.unique(dim=0))
    assert len(kept) == different and int((features[kept.index] == 0).all(1).sum()) == 1
    assert same(kept, SCANNING.compress_batch([sample(0, 60, width), s], [9, budget])[1])
    monkeypatch.setattr(keys, "MATRIX_TOKENS", 0)
    assert torch.equal(SCANNING.compress(s, budget).index, kept.index)


@pytest.mark.parametrize("name", methods())
@pytest.mark.parametrize("size", [1e-25, 1e-40, 1e17])
def test_size_of_keys_and_saliency_does_not_change_the_choice(name, size):
    """Squares of such keys are 0 in single precision, or nearly infinite. Attention in fp64 may be small too."""
    s = sample(3, 40, 8, dk=16)
    factor = 2.0 ** round(torch.log2(torch.tensor(size, dtype=torch.float64)).item())
    dtype = torch.float64 if size < 1e-38 else torch.float32
    other = VisualTokens(
        s.features, s.saliency.double() * min(1.0, factor), s.relevance, (s.keys.double() * factor).to(dtype)
    )
    method = create(name, **({"rho": 0.1} if name == "fsr" else {}))
    assert torch.equal(method.compress(other, 12).index, method.compress(s, 12).index)


@pytest.mark.parametrize("shape", [(30, 5), (144, 100), (144, 160), (317, 320), (400, 40), (700, 3)])
def test_all_ways_of_scanning_pick_the_same(shape, monkeypatch):
    n, width = shape
    some = [sample(seed, n, width) for seed in range(4)]
    some[3] = VisualTokens(some[3].features.round(), some[3].saliency, some[3].relevance)  # many ties
    method, budgets = FSR(rho=0.3), [n // 2, 5, n - 1, n // 3]
    ahead = method.compress_batch(some, budgets)
    assert all(same(a, method.compress(s, k)) for a, s, k in zip(ahead, some, budgets, strict=True))
    monkeypatch.setattr(keys, "MATRIX_TOKENS", 0)
    assert all(same(a, b) for a, b in zip(ahead, method.compress_batch(some, budgets), strict=True))
    monkeypatch.setattr(scan, "greedy_picks", one_by_one)
    assert all(same(a, b) for a, b in zip(ahead, method.compress_batch(some, budgets), strict=True))


def test_sample_kept_whole_is_not_scanned(monkeypatch):
    samples, looked = [sample(i, 90, 8) for i in range(2)], []
    cosine = keys.Keys.cosine
    monkeypatch.setattr(keys.Keys, "cosine", lambda all, index: looked.append(len(index)) or cosine(all, index))
    kept = SCANNING.compress_batch(samples, [10, 90])
    assert [len(k) for k in kept] == [10, 90] and set(looked) == {1}


@pytest.mark.parametrize(("shape", "most"), [((144, 128, 16), 150), ((576, 64, 64), 350)])
def test_small_operations_are_few(shape, most):
    """At these sizes the number of operations decides what selection costs."""
    n, width, budget = shape

    class Count(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.total += 1
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), Count() as count:
        SCANNING.compress(sample(0, n, width), budget)
    assert 50 < count.total <= most


def test_auto_budget_computes_few_extra_rows(monkeypatch):
    rows = []
    cosine = keys.Keys.cosine
    monkeypatch.setattr(scan, "greedy_picks", one_by_one)
    monkeypatch.setattr(keys.Keys, "cosine", lambda all, index: rows.append(index.shape[1]) or cosine(all, index))
    kept = SCANNING.compress(sample(0, 400, 3), Budget(auto=True, radius=0.2))
    assert len(kept) <= sum(rows) <= len(kept) + 2 * picks.CHUNK < 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_anchor_of_weight_zero_stays_as_it_was_in_every_bit(dtype):
    features = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[:, 0] = -0.0
    saliency = torch.zeros(30)
    saliency[4] = 1.0
    kept = SCANNING.compress(VisualTokens(features, saliency), 8)
    assert (kept.merged_into >= 0).sum() == 7
    assert torch.equal(kept.features.view(torch.uint8), features[kept.index].view(torch.uint8))


def test_features_with_gradients_are_accepted():
    s = sample(4, 40, 8)
    tracked = VisualTokens(s.features.clone().requires_grad_(), s.saliency, s.relevance)
    assert torch.equal(SCANNING.compress(tracked, 20).index, SCANNING.compress(s, 20).index)


def test_segment_sum_is_equal_on_both_devices(monkeypatch):
    rows, segment = torch.randn(50, 6), torch.randint(0, 9, (50,))
    on_cpu = segment_sum(rows, segment, 10)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    assert torch.equal(segment_sum(rows, segment, 10), on_cpu)


def test_memory_is_linear_in_tokens():
    n, width, biggest = 3000, 64, 0

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel())
            return out

    with Spy():
        kept = SCANNING.compress(sample(0, n, width), 32)
    assert kept.focus_count == 1
    assert width * n <= biggest < n * n / 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(3)}, "features: expected shape"),
        ({"saliency": torch.ones(4)}, "saliency: has 4 tokens"),
        ({"relevance": torch.tensor([1.0, float("nan"), 0])}, "relevance: has NaN"),
        ({"keys": torch.full((3, 2), float("inf"))}, "keys: has NaN or infinity"),
        ({"saliency": torch.tensor([1.0, -1, 0])}, "saliency: has negative"),
        ({"features": torch.ones(3, 2, dtype=torch.int64)}, "features: expected fp32, fp16, bf16 or fp64"),
        ({"features": torch.full((3, 2), 1e30)}, "features: is too large"),
        ({"features": [[1.0]]}, "features: expected a torch.Tensor"),
        ({"features": torch.ones(0, 2), "saliency": torch.ones(0)}, "features: is empty"),
    ],
)
def test_bad_sample_is_named(change, message):
    fields = {"features": torch.ones(3, 2), "saliency": torch.ones(3)} | change
    with pytest.raises(ValueError, match=message):
        VisualTokens(**fields)


@pytest.mark.parametrize("budget", [0, -1, 1.5, -0.1, True, float("nan"), float("inf"), "64", "", None, [8]])
def test_bad_budget_is_named(budget):
    with pytest.raises(ValueError, match=r"^budget"):
        FSR().compress(sample(0, 4), budget)


@pytest.mark.parametrize(
    ("plain", "budget"),
    [
        (8, Budget(tokens=8)),
        (np.int64(8), Budget(tokens=8)),
        (0.25, Budget(keep_ratio=0.25)),
        (np.float32(0.25), Budget(keep_ratio=0.25)),
        (1.0, Budget(keep_ratio=1.0)),
        ("auto", Budget(auto=True)),
        (Budget(auto=True, radius=0.1), Budget(auto=True, radius=0.1)),
    ],
)
def test_budget_of_a_plain_value(plain, budget):
    assert Budget.of(plain) == budget
    assert FSR().compress(sample(0, 20), plain).index.tolist() == FSR().compress(sample(0, 20), budget).index.tolist()


@pytest.mark.parametrize("ratio", [0, -0.1, 1.1, True, 10**400, float("nan"), float("inf")])
def test_bad_keep_ratio_is_named(ratio):
    with pytest.raises(ValueError, match=r"budget\.keep_ratio"):
        Budget(keep_ratio=ratio)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto": True, "radius": "0.3"}, r"budget\.radius"),
        ({"auto": True, "radius": None}, r"budget\.radius"),
        ({"auto": True, "min_tokens": 9, "max_tokens": 8}, r"budget\.max_tokens"),
        ({"tokens": 64, "max_tokens": 8}, "set auto or drop them"),
        ({"tokens": 64, "auto": True}, "exactly one"),
    ],
)
def test_bad_budget_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Budget(**fields)


@pytest.mark.parametrize(
    "options",
    [{"alpha": -1}, {"alpha": 10**400}, {"rho": 0}, {"kappa": float("nan")}, {"kappa": 1e18}, {"relevance_sign": "*"}],
)
def test_bad_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FSR(**options)


@pytest.mark.parametrize("name", methods())
def test_every_method_keeps_k_in_a_batch_and_alone(name):
    method = create(name, **({"rho": 0.1} if name == "fsr" else {}))
    samples = [sample(i, 30) for i in range(3)]
    together = method.compress_batch(samples, [5, 30, 1])
    assert [len(kept) for kept in together] == [5, 30, 1]
    assert all(same(a, method.compress(s, k)) for a, s, k in zip(together, samples, [5, 30, 1], strict=True))


def test_unknown_method_or_option_lists_known_ones():
    with pytest.raises(ValueError, match="fsr, fsr_volume, random"):
        create("magic")
    with pytest.raises(ValueError, match="alpha, beta"):
        create("fsr", gamma=1)
    with pytest.raises(ValueError, match="1 given for 2 samples"):
        FSR().compress_batch([sample(0, 3)] * 2, [1])
