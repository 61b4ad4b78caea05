"""The table of engines, and what an engine needs before it starts."""

import os
import sys
from typing import get_args

import pytest
import torch

from fsr.decoder.engines.base import Engine
from fsr.decoder.engines.kv_budget import free_share, kv_budget
from fsr.decoder.engines.table import ENGINES, engine_class
from fsr.decoder.engines.transformers.engine import TransformersEngine
from fsr.decoder.metrics import Metrics
from fsr.decoder.settings import DecoderSettings, EngineName


def test_the_table_has_every_engine_of_the_settings():
    assert tuple(ENGINES) == get_args(EngineName)


def test_the_default_engine_is_in_the_table():
    engine = engine_class(DecoderSettings().engine)
    assert engine is TransformersEngine and issubclass(engine, Engine) and engine.name == "transformers"


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match=r"error: --engine: .*'transformers' or 'vllm'"):
        DecoderSettings.load(["--engine", "unknown"])


@pytest.fixture
def without_vllm(monkeypatch):
    """vllm cannot be imported, and its variables are not set."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    for name in ENGINES["vllm"].environment:
        monkeypatch.setenv(name, "")  # so that the variable is removed after the test
        monkeypatch.delenv(name)


def test_a_missing_library_is_refused_with_the_extra_to_install(without_vllm):
    with pytest.raises(ValueError, match=r"engine: vllm cannot be imported .*; install fsr-gateway\[vllm\]$"):
        engine_class("vllm")


def test_an_engine_sets_only_variables_that_are_not_set(without_vllm, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(ValueError, match="vllm"):
        engine_class("vllm")
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["VLLM_NO_USAGE_STATS"]) == ("0", "1")


@pytest.mark.parametrize("options", [{"engine_options": {"dtype": "fp8"}}, {"engine_folder": "/somewhere"}])
async def test_transformers_refuses_options_of_vllm(options):
    settings = DecoderSettings(**options)
    with pytest.raises(ValueError, match="engine: transformers takes no --engine-options"):
        await engine_class("transformers").start(settings, Metrics("tiny"))


def test_the_budget_leaves_memory_for_weights_to_load(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24_000_000_000, 24_000_000_000))
    on_gpu = DecoderSettings(model="any", device="cuda")
    assert kv_budget(on_gpu) == 19_200_000_000
    assert kv_budget(on_gpu, weights_to_load=14_000_000_000) == 8_000_000_000
    assert kv_budget(on_gpu, weights_to_load=30_000_000_000) == 0
    assert kv_budget(DecoderSettings(model="any", device="cuda", kv_memory="1GiB"), weights_to_load=10**10) == 2**30


@pytest.mark.parametrize(("free", "share"), [(24, 0.9), (18, 0.7), (0.5, 0.01)])
def test_an_engine_counts_on_what_is_free_less_a_margin(monkeypatch, free, share):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * 10**9), 24 * 10**9))
    assert free_share(DecoderSettings(model="any", device="cuda")) == pytest.approx(share)
    assert free_share(DecoderSettings(model="any")) is None
