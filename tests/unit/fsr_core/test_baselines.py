"""Each baseline against plain loops, and properties that all methods share."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsr_core import Budget, VisualTokens, create, methods
from fsr_core.baselines.regions import region_of_tokens

BASELINES = [name for name in methods() if not name.startswith("fsr")]
READ_THE_QUESTION = ("cdpruner", "anchorprune", "cenprune", "spare")


def sample(seed: int, n: int, d: int = 24, *, relevance: bool = True, keys: bool = True) -> VisualTokens:
    g = torch.Generator().manual_seed(seed)
    return VisualTokens(
        features=torch.randn(n, d, generator=g),
        saliency=torch.rand(n, generator=g) ** 8,
        relevance=torch.randn(n, generator=g) if relevance else None,
        keys=torch.randn(n, d + 3, generator=g) if keys else None,
    )


def cosines(s: VisualTokens) -> np.ndarray:
    keys = (s.features if s.keys is None else s.keys).double().numpy()
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    return unit @ unit.T


def falling(values) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-float(values[i]), i))


def divprune(s, k):
    distance = 1 - cosines(s)
    np.fill_diagonal(distance, np.inf)
    chosen = [falling(distance.min(1))[0]]
    while len(chosen) < k:
        chosen.append(falling([-1 if i in chosen else distance[i, chosen].min() for i in range(len(s))])[0])
    return chosen


def cdpruner(s, k):
    r = relevance_of(s)
    return of_largest_volume(r[:, None] * cosines(s) * r[None], k)


def scope(s, k):
    cosine, saliency, chosen = cosines(s), s.saliency.double().numpy(), []
    covered = np.zeros(len(s))
    while len(chosen) < k:
        gains = np.maximum(cosine - covered[:, None], 0).sum(0) * saliency
        gains[chosen] = -1
        chosen.append(falling(gains)[0])
        covered = np.maximum(covered, cosine[chosen[-1]])
    return chosen


def dart(s, k):
    cosine = cosines(s)
    norms = s.keys.double().abs().sum(1)
    pivots = falling(norms)[: min(4, k)]
    chosen = list(pivots)
    for turn, pivot in enumerate(pivots):
        share = (k - len(pivots)) // len(pivots) + (turn < (k - len(pivots)) % len(pivots))
        rest = [i for i in range(len(s)) if i not in chosen]
        chosen += sorted(rest, key=lambda i: (cosine[i, pivot], i))[:share]
    return chosen


def vispruner(s, k):
    cosine, order = cosines(s), falling(s.saliency)
    important, rest = order[: max(1, k // 2)], order[max(1, k // 2) :]
    diverse = k - len(important)
    while diverse and len(rest) > diverse:
        first, second = rest[::2], rest[1::2]
        ranked = [first[i] for i in falling([cosine[a, second].max() for a in first])]
        rest = ranked[min(8, len(rest) - diverse) :] + second
    return important + rest[:diverse]


def holov(s, k, crops=16, weight=1.0):
    cosine, attention = cosines(s), s.saliency.double().numpy()
    crop = region_of_tokens(len(s), min(crops, len(s)), torch.device("cpu")).tolist()
    members = [[i for i in range(len(s)) if crop[i] == c] for c in range(max(crop) + 1)]
    scores = np.zeros(len(s))
    for tokens in members:
        variance = []
        for i in tokens:
            row = [0.0 if j == i else cosine[i, j] for j in tokens]
            mean = sum(row) / max(1, len(row) - 1)
            variance.append(sum((x - mean) ** 2 for x in row) / max(1, len(row) - 1))
        gamma = attention[tokens].mean() / np.mean(variance) if len(tokens) > 1 else 0
        diversity = [gamma * v for v in variance] if len(tokens) > 1 else attention[tokens]
        scores[tokens] = attention[tokens] + weight * np.array(diversity)
    means = [scores[tokens].mean() for tokens in members]
    weights, sizes = [mean / sum(means) for mean in means], [len(tokens) for tokens in members]
    quotas = [math.floor(w * k + 1e-4) for w in weights]
    quotas[falling(weights)[0]] += k - sum(quotas)
    while any(q > size for q, size in zip(quotas, sizes, strict=True)):
        capped = [min(q, size) for q, size in zip(quotas, sizes, strict=True)]
        pull = [w * (size - q) for w, size, q in zip(weights, sizes, capped, strict=True)]
        surplus = k - sum(capped)
        quotas = [q + math.floor(surplus * p / sum(pull)) for q, p in zip(capped, pull, strict=True)]
        quotas[falling(pull)[0]] += k - sum(quotas)
    return [i for tokens, q in zip(members, quotas, strict=True) for i in sorted(tokens, key=lambda i: -scores[i])[:q]]


def anchorprune(s, k):
    cosine, ranked = cosines(s), falling(s.relevance)
    least = max(1, math.floor(5 / 32 * k))
    anchor, new = ranked[:least], 0
    for i in ranked[least : max(least, k // 2)]:
        anchor = [*anchor, i]
        new += 1 - cosine[i, ranked[:least]].max() > 0.2
        if new == 3:
            break
    chosen = list(anchor)
    while len(chosen) < k:
        gains = [min(1.0, *(1 - cosine[i, chosen])) * float(s.saliency[i]) for i in range(len(s))]
        chosen.append(next(i for i in falling(gains) if i not in chosen))
    return chosen


def centred(s):
    """Cosines of the keys less their mean, and the distinctiveness of each token, scaled to 0..1."""
    keys = s.keys.double().numpy()
    keys = keys - keys.mean(0)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    distinct = (np.diag(cosines(s)) - cosines(s).sum(1)) / (len(s) - 1)
    return unit @ unit.T, (distinct - distinct.min()) / (distinct.max() - distinct.min())


def relevance_of(s):
    r = s.relevance.double().numpy()
    return (r - r.min()) / (r.max() - r.min()) + 1e-6


def of_largest_volume(kernel, k):
    chosen: list[int] = []
    while len(chosen) < k:
        rest = [i for i in range(len(kernel)) if i not in chosen]
        volumes = [np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1] for i in rest]
        chosen.append(rest[falling(volumes)[0]])
    return chosen


def cenprune(s, k):
    cosine, distinct = centred(s)
    quality = relevance_of(s) * distinct
    return of_largest_volume(quality[:, None] * cosine * quality[None], k)


def cenprune_of_distances(s, k):
    cosine, distinct = centred(s)
    distance = 1 - cosine
    np.fill_diagonal(distance, np.inf)
    chosen = [falling(distance.min(1))[0]]
    while len(chosen) < k:
        gains = [-1 if i in chosen else distinct[i] * distance[i, chosen].min() for i in range(len(s))]
        chosen.append(falling(gains)[0])
    return chosen


def spare(s, k):
    """The residual of a least-squares fit by the chosen tokens, computed anew for every token and step."""
    keys, relevance, chosen = s.keys.double().numpy(), relevance_of(s), []
    while len(chosen) < k:
        basis = keys[chosen].T
        fits = basis @ np.linalg.lstsq(basis, keys.T, rcond=None)[0] if chosen else 0 * keys.T
        gains = relevance * np.linalg.norm(keys.T - fits, axis=0)
        gains[chosen] = -1
        chosen.append(falling(gains)[0])
    return chosen


def cls_topk(s, k):
    return falling(s.saliency)[:k]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([cls_topk, divprune, cdpruner, scope, dart, vispruner, holov, anchorprune, cenprune, spare]),
    st.integers(0, 10_000),
    st.integers(3, 22),
    st.integers(1, 21),
)
def test_selection_equals_plain_loops(reference, seed, n, k):
    s, k = sample(seed, n), min(k, n - 1)
    assert create(reference.__name__).compress(s, k).index.tolist() == sorted(reference(s, k))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 22), st.integers(1, 21))
def test_cenprune_on_divprune_equals_plain_loops(seed, n, k):
    s, k = sample(seed, n), min(k, n - 1)
    kept = create("cenprune", selector="divprune").compress(s, k)
    assert kept.index.tolist() == sorted(cenprune_of_distances(s, k))


def test_selection_of_144_tokens_equals_plain_loops():
    s = sample(5, 144, 160, keys=False)
    for reference in (divprune, scope, vispruner, holov):
        assert create(reference.__name__).compress(s, 48).index.tolist() == sorted(reference(s, 48))


def test_cdpruner_without_volume_ranks_by_relevance():
    s = sample(1, 30, 4, keys=False)  # rank 4, so a fifth token adds no volume
    kept = create("cdpruner").compress(s, 12)
    best = torch.argsort(s.relevance, descending=True)
    assert len(kept.index.unique()) == 12
    assert set(best[:7].tolist()) <= set(kept.index.tolist())
    flipped = VisualTokens(s.features, s.saliency, -s.relevance)
    assert torch.equal(create("cdpruner", relevance_sign="-").compress(flipped, 12).index, kept.index)


def test_spare_prefers_long_tokens_and_cdpruner_does_not():
    s = sample(2, 40, keys=False)
    longer = VisualTokens(s.features * torch.linspace(0.1, 10, 40).unsqueeze(1), s.saliency)
    assert create("spare").compress(longer, 5).index.min() > 20
    plain = VisualTokens(s.features, s.saliency)
    picks = [create("cdpruner").compress(one, 5).index for one in (plain, longer)]
    assert torch.equal(*picks)


@pytest.mark.parametrize("name", ["cenprune", "spare", "anchorprune"])
def test_negated_sign_reverses_relevance(name):
    s = sample(3, 50)
    flipped = VisualTokens(s.features, s.saliency, -s.relevance, s.keys)
    kept = create(name, relevance_sign="-").compress(flipped, 9)
    assert torch.equal(kept.index, create(name).compress(s, 9).index)


def test_anchorprune_without_relevance_anchors_on_saliency():
    s = sample(4, 60, relevance=False)
    kept = create("anchorprune").compress(s, 20)
    anchor = kept.index[kept.stage == 0].tolist()
    assert anchor == sorted(falling(s.saliency)[: len(anchor)]) and 3 <= len(anchor) <= 10


def test_cenprune_when_the_mean_outshines_the_rest_then_still_tells_tokens_apart():
    """All tokens are nearly parallel; without their mean they are what they were before it was added."""
    s = sample(6, 40, 30, relevance=False, keys=False)
    shifted = VisualTokens(s.features - s.features.mean(0) + 1000.0, s.saliency)
    kernel = centred(VisualTokens(shifted.features, s.saliency, keys=shifted.features))[0]
    index = create("cenprune").compress(shifted, 8).index
    chosen = kernel[index][:, index] - np.eye(8)
    assert np.abs(chosen).max() < 0.75 and len(index) == 8


def test_visionzip_merges_others_into_targets():
    s, k = sample(3, 20), 10  # eight dominant tokens, two contextual
    kept, order, cosine = create("visionzip", contextual=0.2).compress(s, k), falling(s.saliency), cosines(s)
    dominant, rest = sorted(order[:8]), sorted(order[8:])
    targets = [rest[0], rest[6]]
    assert kept.index[kept.stage == 0].tolist() == dominant
    assert kept.index[kept.stage == 1].tolist() == targets
    groups = {t: [] for t in targets}
    for i in rest:
        if i not in targets:
            groups[max(targets, key=lambda t: cosine[i, t])].append(i)
    for row, index in zip(kept.features, kept.index.tolist(), strict=True):
        group = groups.get(index)
        want = s.features[index] if not group else (s.features[index] + s.features[group].mean(0)) / 2
        assert torch.allclose(row, want, atol=1e-6)
    assert all(kept.merged_into[i] == t for t, members in groups.items() for i in members)


def test_prumerge_keeps_outliers_and_merges():
    s, k = sample(4, 36), 12
    s.saliency[[5, 17, 30]] += 4.0
    quartiles = np.percentile(s.saliency.numpy(), [25, 75])
    outliers = [i for i in range(36) if s.saliency[i] > quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])]
    assert outliers == [5, 17, 30]
    kept, cosine = create("prumerge").compress(s, k), cosines(s)
    assert kept.index[kept.stage == 0].tolist() == outliers
    rest = [i for i in range(36) if i not in outliers]
    steps = k - len(outliers)
    assert kept.index[kept.stage == 1].tolist() == [rest[int((i + 0.5) * len(rest) / steps)] for i in range(steps)]
    weight = s.saliency / s.saliency.sum()
    for row, index in zip(kept.features, kept.index.tolist(), strict=True):
        nearest = [j for j in falling(cosine[index]) if j != index][:2]  # 32 of 576 is two of 36
        want = s.features[index] + sum(weight[j] * s.features[j] for j in nearest)
        assert torch.allclose(row, want, atol=1e-5)


def test_holov_selects_by_quota_and_diversity():
    s, k = sample(6, 36), 12
    kept, by_attention = create("holov", crops=9).compress(s, k), create("holov", crops=9, weight=0).compress(s, k)
    assert kept.index[kept.stage == 0].tolist() == sorted(holov(s, k, crops=9))
    assert by_attention.index.tolist() == sorted(holov(s, k, crops=9, weight=0))
    # Diversity is scaled to attention, so it changes no quota, only the choice within a crop.
    crop = region_of_tokens(36, 9, torch.device("cpu"))
    assert torch.equal(crop[kept.index].bincount(minlength=9), crop[by_attention.index].bincount(minlength=9))
    assert not torch.equal(kept.index, by_attention.index)


def test_holov_quotas_fit_the_crops():
    s, crop = sample(8, 144), region_of_tokens(144, 16, torch.device("cpu"))
    even = VisualTokens(s.features, torch.full((144,), 0.1), keys=s.keys)
    assert crop[create("holov").compress(even, 48).index].bincount(minlength=16).tolist() == [3] * 16
    one = VisualTokens(s.features, (crop == 5).float(), keys=s.keys)
    counts = crop[create("holov").compress(one, 39).index].bincount(minlength=16)
    assert counts[5] == 9 and sorted(counts.tolist()) == [2] * 15 + [9]


def test_uniform_with_a_grid_budget_is_average_pooling():
    s = sample(7, 144, 5)
    kept = create("uniform").compress(s, 16)
    grid = s.features.T.reshape(1, 5, 12, 12)
    pooled = torch.nn.functional.avg_pool2d(grid, 3)[0].reshape(5, 16).T
    assert torch.allclose(kept.features, pooled, atol=1e-6)
    assert kept.index.tolist() == [(3 * r + 1) * 12 + 3 * c + 1 for r in range(4) for c in range(4)]
    plain = create("uniform", pool=False).compress(s, 16)
    assert torch.equal(plain.features, s.features[kept.index])


@pytest.mark.parametrize("n", [1, 4, 10, 144, 150, 576])
def test_regions_have_similar_sizes(n):
    for count in range(1, n + 1, max(1, n // 40)):
        sizes = region_of_tokens(n, count, torch.device("cpu")).bincount(minlength=count)
        assert len(sizes) == count and sizes.min() >= 1
        side = math.isqrt(n)
        assert sizes.max() <= (4 * n / count if side * side == n else n / count + 1)


@pytest.mark.parametrize("name", BASELINES)
def test_equal_tokens_without_relevance_keep_k(name):
    method = create(name)
    plain = VisualTokens(torch.ones(25, 4), torch.zeros(25))
    for k in (1, 2, 9, 24):
        kept = method.compress(plain, k)
        assert len(kept.index.unique()) == k == len(kept)
        assert torch.isfinite(kept.features).all()
    assert len(method.compress(sample(0, 9), Budget(auto=True, max_tokens=4))) == 4
    low = sample(0, 30)
    half = VisualTokens(low.features.half(), low.saliency, low.relevance, low.keys)
    assert method.compress(half, 7).features.dtype == torch.float16


@pytest.mark.parametrize("name", BASELINES)
def test_batch_with_other_questions_keeps_the_same(name):
    """The picture is the same and the questions differ; some methods read the question."""
    a, b = sample(1, 64), sample(1, 64)
    b = VisualTokens(a.features, a.saliency, -a.relevance, a.keys)
    alone = [create(name).compress(s, 8) for s in (a, b)]
    together = create(name).compress_batch([a, b], [8, 8])
    assert all(torch.equal(x.index, y.index) for x, y in zip(alone, together, strict=True))
    assert torch.equal(alone[0].index, alone[1].index) == (name not in READ_THE_QUESTION)


@pytest.mark.parametrize("name", BASELINES)
def test_memory_is_linear_in_tokens(name):
    n, k, width, biggest = 2500, 250, 256, 0

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.layout == torch.strided:
                biggest = max(biggest, out.untyped_storage().nbytes() // out.element_size())
            return out

    # HoloV compares all pairs within a crop, so a crop must not grow with the picture.
    options = {"holov": {"crops": 100}, "vispruner": {"per_round": 400}}.get(name, {})
    with Spy():
        create(name, **options).compress(sample(0, n, width, keys=False), k)
    assert width * n <= biggest <= 2 * n * max(k, width)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {"seed": -1}),
        ("uniform", {"pool": 1}),
        ("visionzip", {"contextual": 1.5}),
        ("prumerge", {"neighbours": float("nan")}),
        ("vispruner", {"important": "half"}),
        ("vispruner", {"per_round": 0.5}),
        ("cdpruner", {"relevance_sign": "*"}),
        ("dart", {"pivots": 0}),
        ("holov", {"crops": True}),
        ("holov", {"weight": -1}),
        ("holov", {"rule": "theirs"}),
        ("scope", {"alpha": -1}),
        ("anchorprune", {"least": 2}),
        ("anchorprune", {"novelty": -0.1}),
        ("anchorprune", {"patience": 0}),
        ("anchorprune", {"relevance_sign": 1}),
        ("cenprune", {"selector": "dpp"}),
        ("cenprune", {"relevance_sign": ""}),
        ("spare", {"relevance_sign": None}),
    ],
)
def test_bad_option_is_named(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create(name, **options)


def test_whole_option_as_json_number_is_accepted():
    s = sample(2, 40)
    assert torch.equal(create("dart", pivots=3.0).compress(s, 9).index, create("dart", pivots=3).compress(s, 9).index)


def test_random_repeats_for_the_same_seed():
    s = sample(9, 60)
    picks = [create("random", seed=seed).compress(s, 9).index.tolist() for seed in (0, 1, 0)]
    assert picks[0] == picks[2] != picks[1]
