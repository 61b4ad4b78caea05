"""A plan as a table and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from math import isnan
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fsr_core.planning.plan import Case, Plan, over_rate, rates_around
from fsr_core.planning.sizing import Tier

__all__ = ["as_json_text", "as_table"]

_TIERS = {
    "decoders": "decoders",
    "encoders": "encoders (GPUs)",
    "encoder_cores": "encoders' cores",
    "gateways": "gateways (cores)",
}


def as_table(plan: Plan) -> str:
    """The cases side by side, and below them what binds each tier."""
    w, model, gpu = plan.workload, plan.model, plan.gpu
    title = f"{model.name} on {gpu.name} at {w.rate:g} requests/s"
    lines = [f"{title}: {w.text_tokens} text tokens, {w.visual_tokens} visual tokens, {w.answer_tokens} answer tokens"]
    table = Table("", *(case.label for case in plan.cases), box=box.SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *cells in _rows(plan):
        table.add_row(name, *cells)
    lines += [_drawn(table), "what binds"]
    for case in plan.cases:
        lines.append(f"  {case.label}")
        lines += [f"    {title}: {_tier(case, name).binds}" for name, title in _TIERS.items()]
    prices = f"${gpu.price:g} an hour for a GPU ({gpu.price_source}), ${plan.assumed.core_price:g} for a core"
    lines += ["", f"prices: {prices}", "bounds of what the hardware allows, not a measurement: see docs/plan.md"]
    return "\n".join(lines)


def _drawn(table: Table) -> str:
    out = StringIO()
    Console(file=out, width=120).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    cases = plan.cases
    rows = [(title, *(_replicas(_tier(case, name)) for case in cases)) for name, title in _TIERS.items()]
    figures = {
        "GPUs in all": lambda case: f"{case.planned.gpus:,}",
        "dollars an hour": lambda case: f"{case.planned.dollars_per_hour:,.2f}",
        "dollars a million answers": lambda case: f"{case.planned.dollars_per_million:,.2f}",
        "KV memory of a request": lambda case: _bytes(case.planned.kv_bytes),
        "KV memory of a decoder": lambda case: _bytes(case.planned.kv_capacity_bytes),
        "of it in use": lambda case: _bytes(case.planned.kv_used_bytes),
        "answers at a time, of at most": lambda case: f"{case.planned.running:.0f} of {case.planned.answers_at_a_time}",
        "through the gateways": lambda case: f"{case.planned.bytes_per_second * 8 / 1e9:.2f} Gbit/s",
        "first token, p50 and p95": lambda case: _pair(case.simulated.first_token_p50, case.simulated.first_token_p95),
        "whole answer, p50 and p95": lambda case: _pair(case.simulated.answer_p50, case.simulated.answer_p95),
    }
    return rows + [(name, *map(cell, cases)) for name, cell in figures.items()]


def _tier(case: Case, name: str) -> Tier:
    tier: Tier = getattr(case.planned, name)
    return tier


def _replicas(tier: Tier) -> str:
    return f"{tier.replicas:,} ({tier.busy:.0%} busy)"


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _pair(p50: float, p95: float) -> str:
    return f"{_seconds(p50)}, {_seconds(p95)}"


def _seconds(seconds: float) -> str:
    if isnan(seconds):
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def as_json_text(plan: Plan) -> str:
    """Every figure, in bytes, seconds and dollars, and what other rates need; NaN becomes null."""
    curves = {
        label: [asdict(point) for point in points] for label, points in over_rate(plan, rates_around(plan)).items()
    }
    return json.dumps(_finite(asdict(plan) | {"over_rate": curves}), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value
