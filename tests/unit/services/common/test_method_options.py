import time

import pytest
from google.protobuf.struct_pb2 import Struct

import fsr_core
from fsr.common.requests import method_options
from fsr.common.requests.method_options import check_options


def test_default_method_is_the_same_with_and_without_fsr_core():
    assert method_options.DEFAULT_METHOD == fsr_core.DEFAULT_METHOD
    assert method_options.DEFAULT_METHOD in fsr_core.methods()


def options(**values):
    made = Struct()
    made.update(values)
    return made


def test_options_when_they_are_those_of_a_method_pass():
    check_options(options(rho=0.5, centre=True, name="x" * 512, list=[1, 2, "three"] * 80, none=None), "options")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({f"o{i}": 1 for i in range(257)}, "options: hold more than 256 values; send fewer"),
        ({"a": [0] * 256}, r"options\.a: with it, options hold more than 256 values"),
        ({"a": [[]] * 300}, r"options\.a: with it"),
        ({"a": [None] * 300}, r"options\.a: with it"),
        ({"a": {f"k{i}": {} for i in range(200)}}, r"options\.a: with it"),
        ({"a": "x" * 513}, r"options\.a: a text has more than 512 characters"),
        ({"a": [{"k": "x" * 513}]}, r"options\.a: a text has more"),
        ({"a": {"x" * 513: 1}}, r"options\.a: a text has more"),
        ({"x" * 10_000: 1}, "options: a name of 10000 characters is none of an option"),
        ({"a": [1.0, {"b": float("nan")}]}, r"options\.a: nan is no finite number"),
    ],
)
def test_options_when_they_are_large_or_odd_are_refused_by_name(values, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        check_options(options(**values), "options")


def test_options_when_they_are_a_million_values_are_refused_at_once():
    """Two bytes each on the wire. Counting stops at the bound."""
    value = b"\x32" + b"\x80\x80\x80\x01" + b"\x0a\0" * 2**20  # a list
    value = b"\x12" + b"\x85\x80\x80\x01" + value
    entry = b"\x0a\x01a" + value
    size = len(entry)
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21])
    made = Struct.FromString(b"\x0a" + length + entry)
    assert len(made.fields["a"].list_value.values) == 2**20
    began = time.process_time()
    with pytest.raises(ValueError, match="more than 256 values"):
        check_options(made, "options")
    assert time.process_time() - began < 0.5
