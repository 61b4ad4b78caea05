"""Peak memory of each half of a checkpoint while it loads in its own process."""

import json
import subprocess
import sys

import pytest
import torch

from helpers import checkpoints

SHARD = 8 * 2**20  # one shard is mapped while its tensors are converted; a larger tensor is its own shard
# Loading takes 20 to 30 MB more than the weights, depending on the machine but not on their size. The weights are large
# enough that this is little. A second copy, even in the checkpoint's fp16, would be 1.5 times the weights.
AT_MOST = 1.4
# One family for each way in which halves are loaded: towers of CLIP and of Qwen, and tiles whose tokens are shuffled.
# The others load by the same code.
IN_EVERY_RUN = ("llava", "qwen3_vl", "internvl", "smolvlm")
# Each half loads in a fork of a process that has imported everything and loaded both halves of a tiny checkpoint. The
# half takes the amount by which the peak of the fork rises.
MEASURE = """
import json, os, resource, sys
import torch
from fsr_core.backbones import load_decoder, load_encoder

torch.set_num_threads(1)
halves = {
    "encoder": lambda folder: load_encoder(folder, clip="none" if name.startswith("llava") else None),
    "decoder": load_decoder,
}
name = "llava"
for load in halves.values():
    load("fsr-tiny")
for name, folder in json.loads(sys.argv[1]).items():
    for half, load in halves.items():
        if not os.fork():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            loaded = load(folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            module = loaded.model if half == "decoder" else getattr(loaded, "visual", None) or loaded.vision.tower
            size = sum(p.nbytes for p in module.parameters())
            print(json.dumps([name, half, peak * 1024, size]), flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.fixture(scope="module")
def measured(request, tmp_path_factory):
    """(family, half) -> peak bytes of loading it in fp32, bytes of its weights, bytes of all weights.

    The checkpoints are fp16 shards. Nearly all of their weights are in the inner layers of the blocks.
    """
    collected = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    folders = {name: tmp_path_factory.mktemp(name) for name in checkpoints.FAMILIES if name in collected}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TEXT", "CLIP_VISION", "QWEN_VISION"):
            patch.setattr(checkpoints, name, getattr(checkpoints, name) | {"intermediate_size": 120_000})
        patch.setattr(checkpoints, "QWEN2_VISION", checkpoints.QWEN2_VISION | {"mlp_ratio": 120_000 // 32})
        patch.setattr(checkpoints, "SAVING", {"max_shard_size": SHARD})
        torch.set_default_dtype(torch.float16)
        try:
            for name, folder in folders.items():
                checkpoints.FAMILIES[name](folder)
        finally:
            torch.set_default_dtype(torch.float32)
    whole = {name: 2 * sum(f.stat().st_size for f in path.glob("model-*")) for name, path in folders.items()}
    command = [sys.executable, "-c", MEASURE, json.dumps({name: str(folder) for name, folder in folders.items()})]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * len(folders), done.stderr
    return {(name, half): (peak, size, whole[name]) for name, half, peak, size in rows}


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in IN_EVERY_RUN else pytest.mark.cluster) for n in checkpoints.FAMILIES],
)
def test_half_while_loading_takes_little_more_than_its_weights(measured, name, half):
    peak, size, whole = measured[name, half]
    assert 0.8 * size < peak < AT_MOST * size < whole
