"""A whole plan: every budget beside all tokens, with the times that a simulation of the queues gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from fsr_core.budget import Budget
from fsr_core.planning.figures import ModelFigures
from fsr_core.planning.gpus import Gpu
from fsr_core.planning.simulation import Deployment, Load, Simulated, simulate
from fsr_core.planning.sizing import CasePlan, plan_case
from fsr_core.planning.workload import Assumptions, Workload

__all__ = ["Case", "LoadPoint", "Plan", "RatePoint", "make_plan", "over_load", "over_rate", "rates_around"]

_CELL = 4  # decoders that are simulated; the other tiers are cut down in proportion
_RATES = 40  # of a curve
_MOST_ANSWERS, _FEWEST_ANSWERS = 600, 200  # that a simulation measures
_MOST_TOKENS = 60_000  # of these answers together, if that is not too few answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One number of kept tokens, or all of them, and what a simulation of its plan measured."""

    label: str
    planned: CasePlan
    simulated: Simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cases, from the fewest tokens to all of them."""

    model: ModelFigures
    gpu: Gpu
    workload: Workload
    assumed: Assumptions
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """What a rate needs."""

    rate: float
    gpus: int
    dollars_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPoint:
    """How long answers take under a rate; seconds."""

    rate: float
    answer_p95: float


def make_plan(
    model: ModelFigures, gpu: Gpu, workload: Workload, budgets: Sequence[Budget], assumed: Assumptions
) -> Plan:
    """The plan for each budget and for all tokens.

    Raises:
        ValueError: an automatic budget, because only pictures tell what it keeps; a model that does not fit the GPU.
    """
    if any(budget.auto for budget in budgets):
        raise ValueError(
            "budget: a plan needs tokens (64) or a share (0.11); what auto keeps of your pictures, fsr load shows"
        )
    counts = {budget.limits(workload.visual_tokens).maximum for budget in budgets} | {workload.visual_tokens}
    cases = []
    for kept in sorted(counts):
        planned = plan_case(model, gpu, workload, kept, assumed)
        everything = kept == workload.visual_tokens
        label = f"all {kept} tokens" if everything else f"{kept} tokens"
        cases.append(Case(label=label, planned=planned, simulated=_simulated(planned, workload, assumed)))
    return Plan(model=model, gpu=gpu, workload=workload, assumed=assumed, cases=tuple(cases))


def rates_around(plan: Plan) -> list[float]:
    """Rates from a hundredth to twice the planned one."""
    return [plan.workload.rate / 100 * 200 ** (step / (_RATES - 1)) for step in range(_RATES)]


def over_rate(plan: Plan, rates: Sequence[float]) -> dict[str, list[RatePoint]]:
    """By case: what each rate needs."""

    def point(case: Case, rate: float) -> RatePoint:
        workload = replace(plan.workload, rate=rate)
        needed = plan_case(plan.model, plan.gpu, workload, case.planned.kept, plan.assumed)
        return RatePoint(rate=rate, gpus=needed.gpus, dollars_per_hour=needed.dollars_per_hour)

    return {case.label: [point(case, rate) for rate in rates] for case in plan.cases}


def over_load(plan: Plan, shares: Sequence[float]) -> dict[str, list[LoadPoint]]:
    """By case: the 95th percentile of the answers' times, if more or less than the planned rate arrives."""

    def point(case: Case, share: float) -> LoadPoint:
        workload = replace(plan.workload, rate=share * plan.workload.rate)
        return LoadPoint(rate=workload.rate, answer_p95=_simulated(case.planned, workload, plan.assumed).answer_p95)

    return {case.label: [point(case, share) for share in shares] for case in plan.cases}


def _simulated(planned: CasePlan, workload: Workload, assumed: Assumptions) -> Simulated:
    """A cell of the deployment: some of the decoders, and as large a share of the other tiers, rounded up."""
    decoders = min(_CELL, planned.decoders.replicas)
    share = decoders / planned.decoders.replicas
    deployment = Deployment(
        gateways=ceil(share * planned.gateways.replicas),
        picture_cores=ceil(share * planned.encoder_cores.replicas),
        encoders=ceil(share * planned.encoders.replicas),
        decoders=decoders,
        answers_at_a_time=planned.answers_at_a_time,
        prompts_in_a_pass=max(1, assumed.prefill_tokens // (workload.text_tokens + planned.kept)),
    )
    rate = share * workload.rate
    answers = min(_MOST_ANSWERS, max(_FEWEST_ANSWERS, _MOST_TOKENS // workload.answer_tokens))
    seconds = max(answers / rate, 2 * planned.answer_seconds)
    load = Load(rate=rate, seconds=seconds, warm_up=3 * planned.answer_seconds)
    return simulate(planned.times, deployment, workload.answer_tokens, load)
