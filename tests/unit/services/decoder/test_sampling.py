import pytest

from fsr.common.errors import InvalidRequest
from fsr.decoder.sampling import Sampling
from fsr.v1 import types_pb2


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
