from itertools import product

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fsr.decoder.sampling import Sampling
from fsr.decoder.token_choice import RowOptions, choose_tokens, pad_seen, philox, uniform
from fsr.v1 import types_pb2

LOGITS = torch.tensor([0.0, 3.0, 2.9, 1.0, -5.0])


def choose(logits, samplings, steps, seen=None):
    """The tokens of a batch, as a list."""
    return choose_tokens(logits, RowOptions.of(samplings, steps), seen).tolist()


def choose_one(logits, sampling, step=0, seen=()):
    return choose(logits.unsqueeze(0), [sampling], [step], torch.tensor([seen], dtype=torch.int64))[0]


def drawn(count=300, logits=LOGITS, **options):
    """Tokens of one answer, drawn from the same logits at each position."""
    sampling = Sampling(max_tokens=5, **({"temperature": 1.0, "seed": 4} | options))
    return choose(logits.expand(count, -1), [sampling] * count, range(count))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    """The known-answer vectors of the authors' library Random123."""
    got = philox(np.array([counter, counter], np.uint64).T, np.array([key, key], np.uint64).T)
    assert got.T.tolist() == [words, words]


def test_uniform_numbers_differ_for_each_seed_and_step():
    pairs = list(product((0, 1, 2**32, 2**63 - 1, 2**64 - 1), (*range(200), 2**32, 2**32 + 1)))
    seeds, steps = zip(*pairs, strict=True)
    numbers = uniform(seeds, steps)
    assert len(set(numbers.tolist())) == len(pairs) and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.03
    assert uniform([1], [7])[0] == numbers[pairs.index((1, 7))]


def test_greedy_takes_the_first_largest_logit():
    assert choose_one(LOGITS, Sampling(max_tokens=5)) == 1
    assert choose_one(torch.tensor([1.0, 2.0, 2.0]), Sampling(max_tokens=5)) == 1


@pytest.mark.parametrize(
    ("options", "can"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_p": 0.85}, {1, 2}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 3, "top_p": 0.85}, {1, 2}),
        ({"top_k": 99, "top_p": 0.85}, {1, 2}),
        ({"top_p": 1e-9}, {1}),
        ({"top_k": 1, "temperature": 10.0}, {1}),
        ({"temperature": 0.05}, {1, 2}),
    ],
)
def test_top_k_and_top_p_bound_what_is_drawn(options, can):
    assert set(drawn(**options)) == can


def test_draws_follow_the_probabilities():
    share = torch.bincount(torch.tensor(drawn(4000)), minlength=5) / 4000
    assert torch.allclose(share, LOGITS.softmax(-1), atol=0.025)


def test_draws_depend_on_seed_and_position_alone():
    assert drawn() == drawn() != drawn(seed=5)
    assert drawn(10)[7] == choose_one(LOGITS, Sampling(max_tokens=5, temperature=1.0, seed=4), 7, seen=(1, 2))
    assert drawn(seed=2**64 - 1) != drawn(seed=2**63 - 1)


def mixed_batch(rows, vocabulary):
    """Logits, options, steps and seen tokens of rows that have little in common."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    samplings = [
        Sampling(
            max_tokens=5,
            temperature=(0.0, 0.4, 1.0, 3.0)[row % 4],
            top_k=(0, 1, 7, 2000)[row // 2 % 4],
            top_p=(1.0, 0.95, 0.3)[row % 3],
            repetition_penalty=(1.0, 1.5)[row // 4 % 2],
            seed=row * 2**57,
        )
        for row in range(rows)
    ]
    seen = [torch.randint(vocabulary, (row % 5 * 3,), generator=generator) for row in range(rows)]
    return logits, samplings, [3 * row for row in range(rows)], seen


@pytest.mark.parametrize(("rows", "vocabulary"), [(96, 500), (96, 5000), (21, 420_000)])
def test_a_row_alone_gives_what_it_gives_in_a_batch(rows, vocabulary):
    logits, samplings, steps, seen = mixed_batch(rows, vocabulary)
    whole = choose(logits, samplings, steps, pad_seen(seen))
    order = torch.randperm(rows).tolist()
    shuffled = choose(
        logits[order],
        [samplings[row] for row in order],
        [steps[row] for row in order],
        pad_seen([seen[row] for row in order]),
    )
    assert shuffled == [whole[row] for row in order]
    alone = [choose_one(logits[row], samplings[row], steps[row], seen[row].tolist()) for row in range(rows)]
    assert alone == whole


@pytest.mark.parametrize("vocabulary", [40, 3000])
@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.5},
        {"top_p": 0.97},
        {"top_k": 5},
        {"top_k": 30, "top_p": 0.9},
        {"repetition_penalty": 1.7, "top_k": 9},
        {"repetition_penalty": 0.6, "top_p": 0.8},
    ],
)
def test_what_can_be_drawn_is_what_the_library_keeps(vocabulary, spread, options):
    """Each row draws as the cumulative probabilities of the library's processors say."""
    torch.manual_seed(7)
    rows = 64
    logits, seen = torch.randn(rows, vocabulary) * spread, torch.randint(vocabulary, (rows, 12))
    sampling = Sampling(max_tokens=5, temperature=0.7, seed=11, **options)
    steps = LogitsProcessorList()
    if "repetition_penalty" in options:
        steps.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(0.7))
    if "top_k" in options:
        steps.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        steps.append(TopPLogitsWarper(options["top_p"]))
    cumulative = steps(seen, logits).double().softmax(-1).cumsum(-1)
    points = torch.from_numpy(uniform([11] * rows, range(rows))).unsqueeze(1)
    want = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).flatten().tolist()
    assert choose(logits, [sampling] * rows, range(rows), seen) == want


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_repetition_penalty_weighs_seen_tokens(penalty):
    greedy = Sampling(max_tokens=5, repetition_penalty=penalty)
    assert choose_one(LOGITS, greedy, seen=(1,)) == (2 if penalty > 1 else 1)
    assert choose_one(LOGITS, greedy, seen=(2,)) == (1 if penalty > 1 else 2)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"repetition_penalty": 1e-6}])
def test_the_smallest_options_do_not_overflow(options):
    sampling = Sampling.of(types_pb2.Sampling(seed=3, stop=["a" * 256] * 16, **options), 64, 0)
    assert {choose_one(LOGITS * 1000, sampling, step, seen=(1,)) for step in range(20)} == {1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_can_be_drawn_from(dtype):
    assert set(drawn(100, LOGITS.to(dtype), top_p=0.9)) == {1, 2}


def test_a_masked_token_is_never_drawn():
    masked = LOGITS.clone()
    masked[[1, 2]] = -torch.inf
    assert set(drawn(logits=masked, temperature=5.0)) == {0, 3, 4}


def test_a_row_of_nan_harms_no_other():
    sampling = Sampling(max_tokens=5, temperature=1.0, top_p=0.9, seed=4)
    poisoned = torch.stack([LOGITS, torch.full_like(LOGITS, torch.nan), LOGITS])
    got = choose(poisoned, [sampling] * 3, [0, 1, 2])
    want = choose(LOGITS.expand(3, -1), [sampling] * 3, [0, 1, 2])
    assert [got[0], got[2]] == [want[0], want[2]] and 0 <= got[1] < 5
