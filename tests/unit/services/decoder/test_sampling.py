import pytest
import torch

from fsr.common.errors import InvalidRequest
from fsr.decoder.sampling import Sampling, choose, uniform
from fsr.v1 import types_pb2

LOGITS = torch.tensor([0.0, 3.0, 2.9, 1.0, -5.0])
NOTHING = torch.tensor([], dtype=torch.long)


def drawn(seen=NOTHING, **options):
    sampling = Sampling(max_tokens=5, **({"temperature": 1.0, "seed": 4} | options))
    return [choose(LOGITS, sampling, seen, step) for step in range(300)]


def test_greedy_takes_the_first_largest_logit():
    assert choose(LOGITS, Sampling(max_tokens=5), NOTHING, 0) == 1
    assert choose(torch.tensor([1.0, 2.0, 2.0]), Sampling(max_tokens=5), NOTHING, 0) == 1


@pytest.mark.parametrize(
    ("options", "can"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_p": 0.85}, {1, 2}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 3, "top_p": 0.85}, {1, 2}),
        ({"top_p": 1e-9}, {1}),
        ({"top_k": 1, "temperature": 10.0}, {1}),
        ({"temperature": 0.05}, {1, 2}),
    ],
)
def test_top_k_and_top_p_bound_what_is_drawn(options, can):
    assert set(drawn(**options)) == can


def test_draws_follow_the_probabilities():
    share = torch.bincount(torch.tensor(drawn() + drawn(seed=5) + drawn(seed=6)), minlength=5) / 900
    assert torch.allclose(share, LOGITS.softmax(-1), atol=0.05)


def test_draws_depend_on_seed_and_position_alone():
    assert drawn() == drawn() != drawn(seed=5)
    assert drawn(seen=torch.tensor([1, 2])) == drawn()
    numbers = [uniform(seed, step) for seed in (0, 1, 2**63 - 1, 2**64 - 1) for step in range(200)]
    assert len(set(numbers)) == 800 and all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 800 - 0.5) < 0.05


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_repetition_penalty_weighs_seen_tokens(penalty):
    greedy = Sampling(max_tokens=5, repetition_penalty=penalty)
    assert choose(LOGITS, greedy, torch.tensor([1]), 1) == (2 if penalty > 1 else 1)
    assert choose(LOGITS, greedy, torch.tensor([2]), 1) == (1 if penalty > 1 else 2)


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"repetition_penalty": 1e-6}])
def test_the_smallest_options_do_not_overflow(options):
    sampling = Sampling.of(types_pb2.Sampling(seed=3, stop=["a" * 256] * 16, **options), 64, 0)
    assert {choose(LOGITS * 1000, sampling, torch.tensor([1]), step) for step in range(20)} == {1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_can_be_drawn_from(dtype):
    sampling = Sampling(max_tokens=5, temperature=1.0, top_p=0.9, seed=1)
    assert {choose(LOGITS.to(dtype), sampling, NOTHING, step) for step in range(100)} == {1, 2}


def test_options_come_from_the_message():
    message = types_pb2.Sampling(
        max_tokens=7, temperature=0.5, top_p=0.25, seed=0, stop=["a"], top_k=3, repetition_penalty=2, ignore_eos=True
    )
    assert Sampling.of(message, 64, 99) == Sampling(
        max_tokens=7,
        temperature=0.5,
        top_p=0.25,
        seed=0,
        stop=("a",),
        top_k=3,
        repetition_penalty=2.0,
        ignore_eos=True,
    )
    assert Sampling.of(types_pb2.Sampling(), 64, 99) == Sampling(max_tokens=64, seed=99)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": 1e-38},
        {"temperature": 9e-7},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -2},
        {"repetition_penalty": 11},
        {"repetition_penalty": float("nan")},
        {"repetition_penalty": 1e-40},
        {"stop": [""]},
        {"stop": ["a", "b" * 257]},
        {"stop": ["a"] * 17},
    ],
)
def test_a_bad_option_is_refused_by_name(wrong):
    with pytest.raises(InvalidRequest, match=rf"sampling\.{next(iter(wrong))}"):
        Sampling.of(types_pb2.Sampling(**wrong), 64, 0)
