"""The table of what an answer cost and what compression saved."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fsr.client.kept_tokens import KeptTokens
from fsr.client.types import Compression, Usage

__all__ = ["applied", "usage_table"]

_WHO = {"request": "asked for", "policy": "the gateway's default"}


def usage_table(usage: Usage, images: Sequence[KeptTokens] = ()) -> Table:
    """One row for each figure, and for each picture or video whose tokens are explained."""
    share = usage.visual_tokens_kept / usage.visual_tokens_in if usage.visual_tokens_in else 1
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("visual tokens", f"{usage.visual_tokens_in} -> {usage.visual_tokens_kept}  ({share:.1%} kept)")
    if usage.budget:
        table.add_row("compressed with", applied(usage))
    table.add_row("time to first token", f"{usage.seconds['ttft'] * 1000:.0f} ms")
    table.add_row("KV cache saved", _size(usage.kv_bytes_saved))
    table.add_row("on the wire", f"{_size(usage.wire_bytes)} sent, {_size(usage.wire_bytes_saved)} saved")
    table.add_row("prefill saved", f"{usage.prefill_flops_saved / 1e9:.2f} GFLOP")
    for number, image in enumerate(images, 1):
        scan = len(image.index) - image.focus_count
        table.add_row(f"picture {number}", f"{image.focus_count} focus, {scan} scan, {image.merged_count} merged")
    return table


def applied(result: Usage | Compression) -> str:
    """Budget and method of a request with images, and who chose them: `budget 16 (asked for)`."""
    budget_by, method_by = (_WHO.get(by, "unknown") for by in (result.budget_chosen_by, result.method_chosen_by))
    return f"budget {result.budget} ({budget_by}), method {result.method} ({method_by})"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
