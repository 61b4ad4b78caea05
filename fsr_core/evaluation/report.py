"""Writes the figures of a run as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsr_core.evaluation.method_configs import REFERENCE

__all__ = ["by_method", "markdown", "verdicts"]

_TITLES = {
    "test": "Frozen test set",
    "crowded": "Harder: nine things, more than the smallest budget has tokens",
    "distractors": "Harder: distractors that share colour or shape with the target",
    "tiny": "Harder: things about one patch across",
    "shifted": "Shifted: backgrounds and sizes that training never drew",
    "validation": "Validation split (for tuning; not a result)",
}
Table = list[list[str]]


def _table(head: Sequence[str], rows: Table) -> str:
    """A Markdown table. All columns except the first are aligned right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(estimate: dict[str, float]) -> str:
    return f"{_percent(estimate['mean'])} ({_percent(estimate['low'])}-{_percent(estimate['high'])})"


def _signed(difference: dict[str, float], verdict: str) -> str:
    mark = {"wins": " **+**", "loses": " **-**", "ties": ""}[verdict]
    return f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f}..{100 * difference['high']:+.1f}){mark}"


def _budgets(set_result: dict[str, Any]) -> list[int]:
    return [row["budget"] for row in set_result["focus"]]


def by_method(set_result: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """The rows of a set by method and budget."""
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for row in set_result["rows"]:
        methods.setdefault(row["method"], {})[row["budget"]] = row
    return methods


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["seeds"] == 1 else f"{row['method']} (mean of {row['seeds']} seeds)"


def _accuracy(set_result: dict[str, Any]) -> str:
    budgets, full = _budgets(set_result), set_result["full"]["accuracy"]
    rows = [["all tokens", *[_interval(full)] * len(budgets)]]
    for by_budget in by_method(set_result).values():
        cells = [_interval(by_budget[k]["accuracy"]) for k in budgets]
        rows.append([_name(by_budget[budgets[0]]), *cells])
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def _differences(set_result: dict[str, Any]) -> str:
    budgets = _budgets(set_result)
    rows = [
        [method, *(_signed(by_budget[k]["difference"], by_budget[k]["verdict"]) for k in budgets)]
        for method, by_budget in by_method(set_result).items()
        if method != REFERENCE
    ]
    return _table(["method minus FSR", *(f"{k} tokens" for k in budgets)], rows)


def _kinds(set_result: dict[str, Any]) -> str:
    kinds = list(set_result["full"]["kinds"])
    rows = [["all tokens", "all", *(_percent(set_result["full"]["kinds"][kind]) for kind in kinds)]]
    for by_budget in by_method(set_result).values():
        for k, row in by_budget.items():
            rows.append([row["method"], str(k), *(_percent(row["kinds"][kind]) for kind in kinds)])
    return _table(["method", "tokens", *kinds], rows)


def _agreement(set_result: dict[str, Any]) -> str:
    budgets = _budgets(set_result)
    rows = [
        [method, *(_percent(by_budget[k]["agreement"]["mean"]) for k in budgets)]
        for method, by_budget in by_method(set_result).items()
    ]
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def _focus(set_result: dict[str, Any]) -> str:
    kinds = list(set_result["full"]["kinds"])
    rows = []
    for row in set_result["focus"]:
        spread = " / ".join(f"{q:.0f}" for q in row["quantiles"])
        cells = [str(row["budget"]), f"{row['mean']:.1f}", spread, _percent(row["clamped"])]
        rows.append(cells + [_percent(row["clamped_by_kind"][kind]) for kind in kinds])
    return _table(["budget", "mean K_F", "10 / 50 / 90 %", "K_F > K", *kinds], rows)


def _ablations(set_result: dict[str, Any]) -> str:
    budgets = _budgets(set_result)
    grouped: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in set_result["ablations"]:
        grouped.setdefault((row["group"], row["label"]), {})[row["budget"]] = row
    rows = []
    for (group, label), by_budget in grouped.items():
        cells = []
        for k in budgets:
            row = by_budget[k]
            is_default = "(FSR)" in label
            change = "" if is_default else f", {_signed(row['difference'], row['verdict'])}"
            cells.append(_percent(row["accuracy"]["mean"]) + change)
        rows.append([f"{group}: {label}", *cells])
    return _table(["ablation", *(f"{k} tokens" for k in budgets)], rows)


def _auto(set_result: dict[str, Any]) -> str:
    rows = []
    for row in set_result["auto"]:
        spread = row["tokens"]
        tokens = f"{spread['mean']:.1f} ({spread['least']}-{spread['most']})"
        change = _signed(row["difference"], row["verdict"])
        rows.append([row["label"], tokens, _interval(row["accuracy"]), _interval(row["fixed"]), change])
    return _table(["automatic budget", "mean tokens (range)", "accuracy", "fixed, equal mean", "difference"], rows)


def _times(set_result: dict[str, Any]) -> str:
    budgets, times = _budgets(set_result), set_result["milliseconds"]
    rows = []
    for method, by_budget in times.items():
        cells = [f"{by_budget[k]:.2f} ({by_budget[k] / times[REFERENCE][k]:.2f} x)" for k in budgets]
        rows.append([method, *cells])
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def verdicts(set_result: dict[str, Any]) -> str:
    """A line for each method: at which budgets FSR wins, ties and loses against it."""
    lines = []
    for method, by_budget in by_method(set_result).items():
        if method == REFERENCE:
            continue
        clauses = []
        for fsr_verdict, method_verdict in (("wins", "loses"), ("ties", "ties"), ("loses", "wins")):
            budgets = [k for k, row in by_budget.items() if row["verdict"] == method_verdict]
            if budgets:
                points = ", ".join(f"{-100 * by_budget[k]['difference']['mean']:+.1f}" for k in budgets)
                clauses.append(f"{fsr_verdict} at {', '.join(map(str, budgets))} ({points} points)")
        lines.append(f"- against `{method}` FSR {'; '.join(clauses)}")
    return "\n".join(lines)


_SECTIONS = (
    ("rows", "Accuracy, percent right (95 % bootstrap interval)", _accuracy),
    ("rows", "Against FSR on the same questions, points (95 % paired bootstrap)", _differences),
    ("rows", "Where FSR wins, ties and loses", verdicts),
    ("rows", "Accuracy by kind of question, percent", _kinds),
    ("rows", "Agreement with the uncompressed answer, percent", _agreement),
    ("focus", "Tokens that Focus asks for (K_F before its clamp), and percent where that exceeds the budget", _focus),
    ("ablations", "Ablations of FSR: accuracy, and points against the default", _ablations),
    ("auto", "Automatic budgets", _auto),
    ("milliseconds", "Selection, milliseconds a picture on this machine (times FSR's)", _times),
)


def markdown(results: dict[str, Any]) -> str:
    """All tables of all sets. **+** and **-** mark a difference if its interval does not contain zero."""
    about = results["about"]
    parts = [
        f"Model `{about['model']}` (fingerprint `{about['fingerprint'][:12]}`), commit `{about['commit']}`,"
        f" PyTorch {about['torch']}. Command: `{about['command']}`."
    ]
    for name, set_result in results["sets"].items():
        parts.append(f"## {_TITLES[name]} ({set_result['questions']} questions)")
        for key, title, write in _SECTIONS:
            if key in set_result:
                parts.append(f"### {title}\n\n{write(set_result)}")
    return "\n\n".join(parts) + "\n"
