"""The check for machines with a GPU, in small and on the CPU, so that it is ready where there is one."""

import json
import sys

import pytest

from benchmarks import gpu


def test_report_on_the_cpu_when_small_passes_all_checks(tmp_path, monkeypatch, capsys):
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small", "--json", str(file)])
    gpu.main()
    report = json.loads(file.read_text())
    assert report["checks"] == dict.fromkeys(("whole_numbers", "run_to_run", "batch_is_alone", "pixels"), True) | {
        "real_numbers_alike": 1.0
    }
    assert report["engine"] == dict.fromkeys(
        ("engine_is_generate", "engine_batch_is_alone", "engine_frees_kv_memory"), True
    )
    printed = capsys.readouterr().out
    assert len(report["selection"]) == 4 and printed.count("\n| 40 | 8 | 16 |") == 2
    assert "| engine_is_generate | True |" in printed


def test_a_failed_check_when_found_ends_with_an_error(monkeypatch):
    failed = {"device": "a", "versions": {"torch": "b"}, "dtype": "c", "tower": [], "selection": []}
    monkeypatch.setattr(gpu, "measure", lambda device, small: failed | {"checks": {"run_to_run": False}})
    monkeypatch.setattr(gpu, "engine_contract", lambda device, small: {})
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu"])
    with pytest.raises(SystemExit, match="a check failed"):
        gpu.main()


def test_cuda_when_there_is_none_is_refused_with_a_remedy(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "try --device cpu --small" in capsys.readouterr().err
