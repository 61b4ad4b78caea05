"""What only a GPU can tell: what selection costs beside a tower's pass, and whether CUDA decides as the CPU does.

    python -m benchmarks.gpu --json gpu.json            # at most eight minutes; nothing is downloaded
    python -m benchmarks.gpu --device cpu --small       # the same in small, as the tests run it

It needs CUDA, torch >= 2.11, transformers and this checkout; the check of the embedded engine also needs the packages
of the extra `decoder`, and says so where they are not there. The tower has the shape of CLIP ViT-L/14 at 336 pixels,
and random weights. Times are medians, with the device idle before and after each call. It ends with status 1 if a
check fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.gpu_engine import engine_contract
from benchmarks.selection import METHOD, samples
from fsr_core import FSR, CompressedTokens, VisualTokens, picks
from fsr_core.backbones.features import Normalisation
from fsr_core.backbones.vision.patch_tower import PatchTower

SHAPES = ((576, 64, 1024), (576, 192, 4096), (144, 16, 128), (2880, 320, 1024))  # N, K, width of the keys
BATCHES = (1, 16)
SMALL_SHAPES, SMALL_BATCHES = ((40, 8, 16), (30, 6, 40)), (1, 2)
CLIP = Normalisation(1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Row = dict[str, Any]


def idle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds of a call, after three that do not count."""
    taken = []
    for _ in range(3 + repeats):
        idle(device)
        began = time.perf_counter()
        work()
        idle(device)
        taken.append(1000 * (time.perf_counter() - began))
    return median(taken[3:])


def calls_to_device(work: Callable[[], object], device: torch.device) -> dict[str, int | None]:
    """Kernel launches of a call, and copies to the host; None where the profiler sees no device."""
    if device.type != "cuda":
        return {"launches": None, "copies_to_host": None}
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        idle(device)
    names = [event.name for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = sum("Memcpy DtoH" in name for name in names)
    return {"launches": sum(not name.startswith("Mem") for name in names), "copies_to_host": copies}


def on(device: torch.device, given: Sequence[VisualTokens]) -> list[VisualTokens]:
    def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    return [replace(s, **{name: moved(getattr(s, name)) for name in vars(s)}) for s in given]


def equal(ours: Sequence[CompressedTokens], theirs: Sequence[CompressedTokens], features: bool) -> list[bool]:
    """Whether each pair has the same tokens, stages and merges, and the same features if those count."""
    names = ("index", "stage", "merged_into", *(["features"] if features else []))
    pairs = zip(ours, theirs, strict=True)
    return [all(torch.equal(getattr(a, n).cpu(), getattr(b, n).cpu()) for n in names) for a, b in pairs]


def tower(device: torch.device, dtype: torch.dtype, small: bool) -> PatchTower:
    width, blocks, heads, edge = (32, 3, 2, 56) if small else (1024, 23, 16, 336)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        image_size=edge,
        patch_size=14,
    )
    vision._attn_implementation = "sdpa"
    projector = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width))
    config: Any = SimpleNamespace(
        vision_config=vision, vision_feature_layer=vision.num_hidden_layers, vision_feature_select_strategy="default"
    )
    return PatchTower(config, CLIPVisionModel(vision).eval().to(device, dtype), projector.to(device, dtype), None, None)


def tower_costs(vision: PatchTower, device: torch.device, dtype: torch.dtype, batch: int, repeats: int) -> Row:
    """Forward pass with projector, what reading saliency adds to it, and both from bytes on the host."""
    edge = vision.tower.config.image_size
    pictures = torch.randint(0, 256, (batch, 3, edge, edge), dtype=torch.uint8)
    pixels = CLIP(pictures.to(device)).to(dtype)

    def plain() -> torch.Tensor:
        hidden = vision.tower(pixels).last_hidden_state
        return vision.projector(hidden[:, 1:])

    forward = milliseconds(plain, device, repeats)
    with_saliency = milliseconds(lambda: vision.run(pixels), device, repeats)
    whole = milliseconds(lambda: vision.run(CLIP(pictures.to(device)).to(dtype)), device, repeats)
    added = max(0.0, with_saliency - forward)
    row: Row = {"batch": batch, "forward_ms": forward, "saliency_ms": added, "saliency_share": added / forward}
    return row | {"from_bytes_ms": max(0.0, whole - with_saliency)}


def selection_costs(shape: tuple[int, int, int], batch: int, forward: float, device: torch.device, repeats: int) -> Row:
    """Selection of a batch, and the same with launches for every pick."""
    n, budget, width = shape
    inputs = on(device, samples(n, width, batch))

    def select() -> list[CompressedTokens]:
        return METHOD.compress_batch(inputs, [budget] * batch)

    row: Row = {"n": n, "k": budget, "dk": width, "batch": batch, "ms": milliseconds(select, device, repeats)}
    row |= {"of_forward": row["ms"] / forward} | calls_to_device(select, device)
    row["kernel"] = device.type == "cuda" and picks._kernel() is not None
    if row["kernel"]:
        kernel = picks._kernel
        picks._kernel = lambda: None  # type: ignore[assignment]
        try:
            row["pick_by_pick_ms"] = milliseconds(select, device, max(3, repeats // 4))
        finally:
            picks._kernel = kernel
    return row


def checks(shapes: Sequence[tuple[int, int, int]], device: torch.device, runs: int) -> dict[str, Any]:
    """What must be equal. Keys of small whole numbers have exact products, so there CUDA must decide as the CPU does;
    other keys may differ where rounding decides."""
    found: dict[str, Any] = {"whole_numbers": True, "run_to_run": True, "batch_is_alone": True}
    alike: list[bool] = []
    for n, budget, width in shapes:
        real = samples(n, width, 4)
        whole = [replace(s, features=(2 * s.features).round()) for s in real]
        budgets = [budget, max(1, budget // 2), budget, 1]
        method = FSR(rho=0.05)
        for given in (whole, real):
            there = on(device, given)
            first = method.compress_batch(there, budgets)
            same = equal(first, method.compress_batch(given, budgets), features=False)
            if given is whole:
                found["whole_numbers"] &= all(same)
            else:
                alike += same
            found["run_to_run"] &= all(
                all(equal(first, method.compress_batch(there, budgets), features=True)) for _ in range(runs)
            )
            alone = [method.compress(s, k) for s, k in zip(there, budgets, strict=True)]
            found["batch_is_alone"] &= all(equal(first, alone, features=True))
    found["real_numbers_alike"] = sum(alike) / len(alike)
    bytes_ = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    found["pixels"] = bool(torch.equal(CLIP(bytes_.to(device)).cpu(), CLIP(bytes_)))
    return found


@torch.inference_mode()
def measure(device: torch.device, small: bool) -> dict[str, Any]:
    """The whole report."""
    cuda = device.type == "cuda"
    dtype, repeats, runs = torch.float16 if cuda else torch.float32, 3 if small else 20, 2 if small else 10
    shapes, batches = (SMALL_SHAPES, SMALL_BATCHES) if small else (SHAPES, BATCHES)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
        | {"transformers": transformers.__version__},
        "dtype": str(dtype).removeprefix("torch."),
    }
    vision = tower(device, dtype, small)
    report["tower"] = [tower_costs(vision, device, dtype, batch, repeats) for batch in batches]
    forward = {row["batch"]: row["forward_ms"] for row in report["tower"]}
    report["selection"] = [
        selection_costs(shape, batch, forward[batch], device, repeats) for shape in shapes for batch in batches
    ]
    report["checks"] = checks(shapes, device, runs)
    return report


def table(report: dict[str, Any]) -> str:
    """For docs/performance.md."""
    lines = [f"{report['device']}, torch {report['versions']['torch']}, tower in {report['dtype']}:", ""]
    lines += ["| pictures | tower, ms | saliency adds | pixels from bytes, ms |", "| --: | --: | --: | --: |"]
    lines += [
        f"| {row['batch']} | {row['forward_ms']:.2f} | {row['saliency_share']:.1%} | {row['from_bytes_ms']:.2f} |"
        for row in report["tower"]
    ]
    lines += [
        "",
        "| N | K | Dk | batch | selection, ms | of the tower | pick by pick | launches | copies to host |",
    ]
    lines += ["|" + " --: |" * 9]
    for row in report["selection"]:
        shape = " | ".join(str(row[key]) for key in ("n", "k", "dk", "batch"))
        each = f"{row['pick_by_pick_ms']:.2f}" if "pick_by_pick_ms" in row else "-"
        counted = " | ".join("-" if row[key] is None else str(row[key]) for key in ("launches", "copies_to_host"))
        lines.append(f"| {shape} | {row['ms']:.2f} | {row['of_forward']:.1%} | {each} | {counted} |")
    lines += ["", "| check | result |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in (report["checks"] | report["engine"]).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch device")
    parser.add_argument("--small", action="store_true", help="small sizes, which show that it works")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no CUDA here; install its CUDA build, or try --device cpu --small")
    began = time.perf_counter()
    report = measure(device, options.small)
    report["engine"] = engine_contract(options.device, options.small)
    report["seconds"] = time.perf_counter() - began
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))
    if False in (report["checks"] | report["engine"]).values():
        sys.exit("a check failed")


if __name__ == "__main__":
    main()
