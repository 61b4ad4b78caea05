"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsr_core.evaluation.method_configs import REFERENCE

__all__ = ["by_method", "markdown"]

_TITLES = {
    "test": "Frozen test set",
    "crowded": "Harder: fourteen things, more than in training",
    "distractors": "Harder: distractors that share colour or shape with the target",
    "tiny": "Harder: things about one patch across",
    "shifted": "Shifted: backgrounds and sizes that training never drew",
    "validation": "Validation split (for tuning; not a result)",
}
Table = list[list[str]]


def _table(head: Sequence[str], rows: Table) -> str:
    """A Markdown table. Every column except the first is aligned to the right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), rule, *rows])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(estimate: dict[str, float]) -> str:
    return f"{_percent(estimate['mean'])} ({_percent(estimate['low'])}-{_percent(estimate['high'])})"


def _signed(difference: dict[str, float], verdict: str) -> str:
    mark = {"wins": " **+**", "loses": " **-**", "ties": ""}[verdict]
    return f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f}..{100 * difference['high']:+.1f}){mark}"


def _budgets(set_results: dict[str, Any]) -> list[int]:
    return list(dict.fromkeys(row["budget"] for row in set_results["rows"]))


def by_method(set_results: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """The rows of a set by method and budget."""
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for row in set_results["rows"]:
        methods.setdefault(row["method"], {})[row["budget"]] = row
    return methods


def _name(row: dict[str, Any]) -> str:
    return row["method"] if row["seeds"] == 1 else f"{row['method']} (mean of {row['seeds']} seeds)"


def _accuracy(set_results: dict[str, Any]) -> str:
    budgets, full = _budgets(set_results), set_results["full"]["accuracy"]
    rows = [["all tokens", *[_interval(full)] * len(budgets)]]
    for by_budget in by_method(set_results).values():
        cells = [_interval(by_budget[k]["accuracy"]) for k in budgets]
        rows.append([_name(by_budget[budgets[0]]), *cells])
    return _table(["method", *(f"{k} tokens" for k in budgets)], rows)


def _differences(set_results: dict[str, Any], reference: str = REFERENCE) -> str:
    budgets = _budgets(set_results)
    rows = [
        [method, *(_signed(by_budget[k]["difference"], by_budget[k]["verdict"]) for k in budgets)]
        for method, by_budget in by_method(set_results).items()
        if method != reference
    ]
    count = sum(row["method"] != reference for row in set_results["rows"])
    name = "FSR" if reference == REFERENCE else reference
    return f"{_together(count)}\n\n" + _table([f"method minus {name}", *(f"{k} tokens" for k in budgets)], rows)


def _together(comparisons: int) -> str:
    return f"{comparisons} comparisons; in 95 % of runs all their intervals hold (max-T bootstrap)."


def _kinds(set_results: dict[str, Any]) -> str:
    kinds, smaller = list(set_results["full"]["kinds"]), sorted(_budgets(set_results))[:2]
    rows = [["all tokens", "all", *(_percent(set_results["full"]["kinds"][kind]) for kind in kinds)]]
    for by_budget in by_method(set_results).values():
        for k in reversed(smaller):
            rows.append([_name(by_budget[k]), str(k), *(_percent(by_budget[k]["kinds"][kind]) for kind in kinds)])
    return _table(["method", "tokens", *kinds], rows)


def _focus(set_results: dict[str, Any]) -> str:
    kinds = list(set_results["full"]["kinds"])
    rows = []
    for row in set_results["focus"]:
        spread = " / ".join(f"{q:.0f}" for q in row["quantiles"])
        cells = [str(row["budget"]), f"{row['mean']:.1f}", spread, _percent(row["clamped"])]
        rows.append(cells + [_percent(row["clamped_by_kind"][kind]) for kind in kinds])
    return _table(["budget", "mean K_F", "10 / 50 / 90 %", "K_F > K", *kinds], rows)


def _ablations(set_results: dict[str, Any]) -> str:
    budgets = _budgets(set_results)
    grouped: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in set_results["ablations"]:
        grouped.setdefault((row["group"], row["label"]), {})[row["budget"]] = row
    rows = []
    for (group, label), by_budget in grouped.items():
        cells = []
        for k in budgets:
            row = by_budget[k]
            change = "" if "(FSR)" in label else f", {_signed(row['difference'], row['verdict'])}"
            cells.append(_percent(row["accuracy"]["mean"]) + change)
        rows.append([f"{group}: {label}", *cells])
    count = sum("(FSR)" not in row["label"] for row in set_results["ablations"])
    return f"{_together(count)}\n\n" + _table(["ablation", *(f"{k} tokens" for k in budgets)], rows)


def _auto(set_results: dict[str, Any]) -> str:
    rows = []
    for row in set_results["auto"]:
        spread = row["tokens"]
        tokens = f"{spread['mean']:.1f} ({spread['least']}-{spread['most']})"
        change = _signed(row["difference"], row["verdict"])
        rows.append([row["label"], tokens, _interval(row["accuracy"]), _interval(row["fixed"]), change])
    head = ["automatic budget", "mean tokens (range)", "accuracy", "fixed, equal mean", "difference"]
    return f"{_together(len(rows))}\n\n" + _table(head, rows)


def _times(set_results: dict[str, Any]) -> str:
    budgets, tables = _budgets(set_results), []
    for measured in set_results["milliseconds"]:
        times, rows = measured["times"], []
        for method, by_budget in times.items():
            cells = [f"{by_budget[k]:.2f} ({by_budget[k] / times[REFERENCE][k]:.2f} x)" for k in budgets]
            rows.append([method, *cells])
        size = "one picture at a time" if measured["batch"] == 1 else f"batches of {measured['batch']}"
        tables.append(_table([size, *(f"{k} tokens" for k in budgets)], rows))
    return "\n\n".join(tables)


_SECTIONS = (
    ("focus", "Tokens that Focus asks for (K_F before its clamp), and percent where that exceeds the budget", _focus),
    ("ablations", "Ablations of FSR: accuracy, and points against the default", _ablations),
    ("auto", "Automatic budgets", _auto),
    ("milliseconds", "Selection, milliseconds a picture on this machine (times FSR's)", _times),
)
_ACCURACY = "percent right (95 % bootstrap interval, each by itself)"


def _pooled(pooled: dict[str, Any]) -> list[str]:
    parts = [f"## All held-out sets together ({pooled['questions']} questions)"]
    parts.append(f"### Accuracy on all, {_ACCURACY}\n\n{_accuracy(pooled)}")
    for reference, rows in pooled["against"].items():
        whose = "FSR" if reference == REFERENCE else f"`{reference}`, our method"
        parts.append(f"### Against {whose}: points on the same questions\n\n{_differences({'rows': rows}, reference)}")
    return parts


def markdown(results: dict[str, Any]) -> str:
    """The tables that decide: all held-out sets together, then each set. results.json holds every figure.

    **+** and **-** mark differences whose interval does not contain zero.
    """
    about = results["about"]
    parts = [
        f"Model `{about['model']}` (fingerprint `{about['fingerprint'][:12]}`), commit `{about['commit']}`,"
        f" PyTorch {about['torch']}. Command: `{about['command']}`."
    ]
    parts += _pooled(results["pooled"]) if "pooled" in results else []
    for name, set_results in results["sets"].items():
        parts.append(f"## {_TITLES[name]} ({set_results['questions']} questions)")
        parts.append(f"Accuracy, {_ACCURACY}:\n\n{_accuracy(set_results)}")
        if "pooled" not in results:
            parts.append(f"Against FSR, points on the same questions: {_differences(set_results)}")
    name, first = next(iter(results["sets"].items()))
    parts.append(f"## More about the set `{name}`")
    parts.append(f"### Accuracy by kind of question, percent\n\n{_kinds(first)}")
    parts += [f"### {title}\n\n{write(first)}" for key, title, write in _SECTIONS if key in first]
    return "\n\n".join(parts) + "\n"
