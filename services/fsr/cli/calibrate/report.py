"""A calibration as JSON, as Markdown, and as options of the gateway."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from typing import Any

from fsr.cli.calibrate.procedure import Outcome, Plan, Result, Verdict

__all__ = ["as_json", "as_markdown", "policy_file", "summary"]

_MEASURES = {
    "agreement": "agreement with the answers from all tokens",
    "accuracy": "accuracy",
    "relative-accuracy": "accuracy as a share of that of all tokens",
}
_HEADINGS = ("method", "budget", "tokens kept", "questions", "mean", "{:.0%} interval", "")


def as_json(plan: Plan, result: Result, about: dict[str, Any]) -> dict[str, Any]:
    """Every figure; `about` says what was asked, and how."""
    chosen = result.chosen
    return about | {
        "target": plan.target,
        "confidence": plan.confidence,
        "measure": plan.measure,
        "score": plan.scorer.name,
        "chosen": _policy(chosen) if chosen else None,
        "questions": {"given": len(plan.questions), "asked": result.whole.evidence.questions},
        "all_tokens": _figures(plan, result.whole),
        "candidates": [_candidate(plan, one) for outcomes in result.methods for one in outcomes],
    }


def _candidate(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    candidate = outcome.candidate
    named = {"method": candidate.method, "budget": candidate.budget, "options": dict(candidate.options)}
    changes = [
        {"place": one.question.place, "question": one.question.text, "all_tokens": one.whole, "kept": one.compressed}
        for one in outcome.changes
    ]
    return named | {"verdict": outcome.verdict.name.lower()} | _figures(plan, outcome) | {"changed": changes}


def _figures(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    low, high = outcome.evidence.interval(plan.alpha_of_method)
    figures = {
        "questions": outcome.evidence.questions,
        "mean": outcome.evidence.mean,
        "low": low,
        "high": high,
        "tokens_kept": outcome.mean_kept,
        "tokens": outcome.mean_tokens,
    }
    return {name: None if isnan(value) else value for name, value in figures.items()}


def _policy(outcome: Outcome) -> dict[str, Any]:
    """The options of the gateway."""
    candidate = outcome.candidate
    policy: dict[str, Any] = {"default_budget": candidate.budget, "default_method": candidate.method}
    return policy | ({"default_options": dict(candidate.options)} if candidate.options else {})


def policy_file(plan: Plan, outcome: Outcome) -> str:
    """A file for the gateway's --config: YAML, in which JSON values are valid."""
    lines = [f"# fsr calibrate: keeps {_MEASURES[plan.measure]} at {plan.target:g} or above ({plan.confidence:.0%}).\n"]
    return "".join([*lines, *(f"{name}: {json.dumps(value)}\n" for name, value in _policy(outcome).items())])


def summary(plan: Plan, result: Result) -> str:
    """What was found, in one or two sentences."""
    asked, chosen = result.whole.evidence.questions, result.chosen
    measure, confidence = _MEASURES[plan.measure], f"{plan.confidence:.0%}"
    if chosen is None:
        why = f"no budget of the ladder is shown to keep {measure} at {plan.target:g} (asked {asked} questions)"
        return f"{why}{_remedy(plan, result)}"
    low, _ = chosen.evidence.interval(plan.alpha_of_method)
    kept = f"{chosen.mean_kept:.0f} of {chosen.mean_tokens:.0f} tokens"
    return (
        f"the cheapest is {chosen.candidate} ({kept}): {measure} {chosen.evidence.mean:.1%}, at least {low:.1%} with "
        f"{confidence} confidence, which keeps {plan.target:g}; asked {asked} of {len(plan.questions)} questions"
    )


def _remedy(plan: Plan, result: Result) -> str:
    whole = result.whole.evidence.mean
    if plan.measure == "accuracy" and whole <= plan.target:
        return f"; all tokens reach {whole:.1%} themselves, so lower --target, or take --measure relative-accuracy"
    if any(one.verdict is Verdict.OPEN for one in result.tested):
        return "; give more questions, larger --budgets, or a lower --target"
    return "; give larger --budgets, or a lower --target"


def as_markdown(plan: Plan, result: Result, pictures: Sequence[str], plot: str | None) -> str:
    """The page of a run. `pictures` and `plot` are names of files beside it."""
    headings = [heading.format(plan.confidence) for heading in _HEADINGS]
    lines = [f"| {' | '.join(headings)} |", "| --- | --: | --: | --: | --: | --: | --- |"]
    lines += [_row(plan, "all tokens", "", result.whole, "")]
    for outcomes in result.methods:
        for one in outcomes:
            candidate = one.candidate
            mark = " (chosen)" if one is result.chosen else ""
            lines.append(_row(plan, f"`{candidate.method}`", str(candidate.budget), one, one.verdict + mark))
    text = summary(plan, result)
    parts = [f"{text[0].upper()}{text[1:]}.", f"Mean: {_MEASURES[plan.measure]}, score `{plan.scorer.name}`."]
    page = "\n".join([*parts, "", *lines, ""])
    if plot is not None:
        page += f"\n![{_MEASURES[plan.measure]} by tokens kept]({plot})\n"
    if pictures:
        page += "\nAnswers that compression changed, with what was kept:\n\n"
        page += "".join(f"![a changed answer]({name})\n" for name in pictures)
    return page


def _row(plan: Plan, method: str, budget: str, outcome: Outcome, verdict: str) -> str:
    if not outcome.evidence.questions:
        return f"| {method} | {budget} | | 0 | | | {verdict} |"
    low, high = outcome.evidence.interval(plan.alpha_of_method)
    kept = f"{outcome.mean_kept:.0f} of {outcome.mean_tokens:.0f}"
    cells = (kept, str(outcome.evidence.questions), f"{outcome.evidence.mean:.1%}", f"{low:.1%} to {high:.1%}")
    return f"| {method} | {budget} | {' | '.join(cells)} | {verdict} |"
