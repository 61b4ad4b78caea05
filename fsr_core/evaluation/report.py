"""The figures as Markdown: one table a question that a reader has."""

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
    """Markdown; every column but the first is aligned right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(estimate: dict[str, float]) -> str:
    return f"{_percent(estimate['mean'])} ({_percent(estimate['low'])}-{_percent(estimate['high'])})"


def _signed(difference: dict[str, float], verdict: str) -> str:
    mark = {"wins": " **+**", "loses": " **-**", "ties": ""}[verdict]
    return f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f}..{100 * difference['high']:+.1f}){mark}"


def _budgets(found: dict[str, Any]) -> list[int]:
    return [row["budget"] for row in found["focus"]]


def by_method(found: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for row in found["rows"]:
        methods.setdefault(row["method"], {})[row["budget"]] = row
    return methods


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["seeds"] == 1 else f"{row['method']} (mean of {row['seeds']} seeds)"


def _accuracy(found: dict[str, Any]) -> str:
    budgets, full = _budgets(found), found["full"]["accuracy"]
    rows = [["all tokens", *[_interval(full)] * len(budgets)]]
    for by_budget in by_method(found).values():
        cells = [_interval(by_budget[k]["accuracy"]) for k in budgets]
        rows.append([_name(by_budget[budgets[0]]), *cells])
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def _differences(found: dict[str, Any]) -> str:
    budgets = _budgets(found)
    rows = [
        [method, *(_signed(by_budget[k]["difference"], by_budget[k]["verdict"]) for k in budgets)]
        for method, by_budget in by_method(found).items()
        if method != REFERENCE
    ]
    return _table(["method minus FSR", *(f"{k} tokens" for k in budgets)], rows)


def _kinds(found: dict[str, Any]) -> str:
    kinds = list(found["full"]["kinds"])
    rows = [["all tokens", "all", *(_percent(found["full"]["kinds"][kind]) for kind in kinds)]]
    for by_budget in by_method(found).values():
        for k, row in by_budget.items():
            rows.append([row["method"], str(k), *(_percent(row["kinds"][kind]) for kind in kinds)])
    return _table(["method", "tokens", *kinds], rows)


def _agreement(found: dict[str, Any]) -> str:
    budgets = _budgets(found)
    rows = [
        [method, *(_percent(by_budget[k]["agreement"]["mean"]) for k in budgets)]
        for method, by_budget in by_method(found).items()
    ]
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def _focus(found: dict[str, Any]) -> str:
    kinds = list(found["full"]["kinds"])
    rows = []
    for row in found["focus"]:
        spread = " / ".join(f"{q:.0f}" for q in row["quantiles"])
        cells = [str(row["budget"]), f"{row['mean']:.1f}", spread, _percent(row["clamped"])]
        rows.append(cells + [_percent(row["clamped_by_kind"][kind]) for kind in kinds])
    return _table(["budget", "mean K_F", "10 / 50 / 90 %", "K_F > K", *kinds], rows)


def _ablations(found: dict[str, Any]) -> str:
    budgets = _budgets(found)
    grouped: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in found["ablations"]:
        grouped.setdefault((row["group"], row["label"]), {})[row["budget"]] = row
    rows = []
    for (group, label), by_budget in grouped.items():
        cells = []
        for k in budgets:
            row = by_budget[k]
            own = "(FSR)" in label
            change = "" if own else f", {_signed(row['difference'], row['verdict'])}"
            cells.append(_percent(row["accuracy"]["mean"]) + change)
        rows.append([f"{group}: {label}", *cells])
    return _table(["ablation", *(f"{k} tokens" for k in budgets)], rows)


def _auto(found: dict[str, Any]) -> str:
    rows = []
    for row in found["auto"]:
        spread = row["tokens"]
        tokens = f"{spread['mean']:.1f} ({spread['least']}-{spread['most']})"
        change = _signed(row["difference"], row["verdict"])
        rows.append([row["label"], tokens, _interval(row["accuracy"]), _interval(row["fixed"]), change])
    return _table(["automatic budget", "mean tokens (range)", "accuracy", "fixed, equal mean", "difference"], rows)


def _times(found: dict[str, Any]) -> str:
    budgets, times = _budgets(found), found["milliseconds"]
    rows = []
    for method, by_budget in times.items():
        cells = [f"{by_budget[k]:.2f} ({by_budget[k] / times[REFERENCE][k]:.2f} x)" for k in budgets]
        rows.append([method, *cells])
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def verdicts(found: dict[str, Any]) -> str:
    """For each method in plain words, at which budgets FSR wins, ties and loses."""
    lines = []
    for method, by_budget in by_method(found).items():
        if method == REFERENCE:
            continue
        said = []
        for mine, theirs in (("wins", "loses"), ("ties", "ties"), ("loses", "wins")):
            at = [k for k, row in by_budget.items() if row["verdict"] == theirs]
            if at:
                points = ", ".join(f"{-100 * by_budget[k]['difference']['mean']:+.1f}" for k in at)
                said.append(f"{mine} at {', '.join(map(str, at))} ({points} points)")
        lines.append(f"- against `{method}` FSR {'; '.join(said)}")
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
    """Every table of every set. **+** and **-** mark differences whose interval leaves out zero."""
    about = results["about"]
    parts = [
        f"Model `{about['model']}` (fingerprint `{about['fingerprint'][:12]}`), commit `{about['commit']}`,"
        f" PyTorch {about['torch']}. Command: `{about['command']}`."
    ]
    for name, found in results["sets"].items():
        parts.append(f"## {_TITLES[name]} ({found['questions']} questions)")
        for key, title, write in _SECTIONS:
            if key in found:
                parts.append(f"### {title}\n\n{write(found)}")
    return "\n\n".join(parts) + "\n"
