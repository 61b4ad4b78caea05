"""What a policy makes of a request's budget and method, and how policies of several places become one."""

import pytest

from fsr.common.errors import Failed, InvalidRequest
from fsr.common.requests.budget_text import budget_text, parse_budget_text
from fsr.gateway.options.policy import Policy, resolve
from fsr.gateway.validation import check_default_method
from fsr.v1 import gateway_pb2, types_pb2

REQUEST, POLICY = types_pb2.CHOSEN_BY_REQUEST, types_pb2.CHOSEN_BY_POLICY
OPEN, NO_METHOD = types_pb2.Budget(), types_pb2.Method()


def method(name="", **options):
    message = types_pb2.Method(name=name)
    message.options.update(options)
    return message


@pytest.mark.parametrize("text", ["64", "0.11", "auto", "auto:16..128"])
def test_budget_when_it_is_open_is_the_policy_s_with_the_request_s_spread(text):
    applied = Policy(default_budget=text).apply(types_pb2.Budget(spread=types_pb2.SPREAD_FREE), NO_METHOD)
    assert (budget_text(applied.budget), applied.budget.spread) == (text, types_pb2.SPREAD_FREE)
    assert applied.budget_chosen_by == POLICY and applied.bounds is None


@pytest.mark.parametrize("text", ["16", "128", "0.9", "1.0"])
def test_budget_when_the_request_sets_it_stays_as_it_is(text):
    applied = Policy(default_budget="64", min_tokens=16, max_tokens=128).apply(parse_budget_text(text), NO_METHOD)
    assert (budget_text(applied.budget), applied.budget_chosen_by) == (text, REQUEST)


@pytest.mark.parametrize(
    ("asked", "low", "high", "applied"),
    [
        ("auto", 16, 128, "auto:16..128"),
        ("auto", 0, 128, "auto:..128"),
        ("auto:32..64", 16, 128, "auto:32..64"),
        ("auto:8..300", 16, 128, "auto:16..128"),
        ("auto:..300", 16, 0, "auto:16..300"),
        ("auto", 0, 0, "auto"),
    ],
)
def test_automatic_budget_is_narrowed_to_the_bounds(asked, low, high, applied):
    policy = Policy(min_tokens=low, max_tokens=high)
    assert budget_text(policy.apply(parse_budget_text(asked), NO_METHOD).budget) == applied


def test_automatic_budget_keeps_its_radius():
    budget = types_pb2.Budget(auto=types_pb2.AutoBudget(radius=0.5))
    assert Policy(max_tokens=9).apply(budget, NO_METHOD).budget.auto.radius == 0.5
    assert not budget.auto.max_tokens, "the request itself must not change"


@pytest.mark.parametrize(
    ("asked", "low", "high", "says"),
    [
        (
            "200",
            16,
            128,
            "budget.tokens: 200 is more than 128, the most that the policy allows; ask for a number in 16..128",
        ),
        (
            "200",
            0,
            128,
            "budget.tokens: 200 is more than 128, the most that the policy allows; ask for a number in 1..128",
        ),
        (
            "8",
            16,
            0,
            "budget.tokens: 8 is fewer than 16, the fewest that the policy allows; ask for a number in 16..all",
        ),
        (
            "auto:200..",
            16,
            128,
            "budget.auto: 200..all has no number in 16..128, which the policy allows; leave out min",
        ),
        (
            "auto:..8",
            16,
            128,
            "budget.auto: 1..8 has no number in 16..128, which the policy allows; leave out min_tokens",
        ),
    ],
)
def test_budget_when_it_is_out_of_bounds_is_refused_with_bounds_and_remedy(asked, low, high, says):
    with pytest.raises(InvalidRequest) as caught:
        Policy(default_budget="64", min_tokens=low, max_tokens=high).apply(parse_budget_text(asked), NO_METHOD)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("share", [0.9, None])
def test_share_goes_to_the_encoder_with_the_bounds(share):
    policy = Policy(default_budget="0.5", min_tokens=16, max_tokens=128)
    applied = policy.apply(types_pb2.Budget(keep_ratio=share) if share else OPEN, NO_METHOD)
    assert applied.bounds == types_pb2.TokenBounds(min_tokens=16, max_tokens=128)
    assert applied.budget_chosen_by == (REQUEST if share else POLICY)


@pytest.mark.parametrize(
    ("asked", "applied", "chosen_by"),
    [
        (NO_METHOD, method("cdpruner", relevance_sign="-", theta=0.5), POLICY),
        (method(theta=0.7), method("cdpruner", relevance_sign="-", theta=0.7), POLICY),
        (method("fsr", rho=0.7), method("fsr", rho=0.7), REQUEST),
        (method("cdpruner"), method("cdpruner"), REQUEST),
    ],
)
def test_method_when_it_is_open_is_the_policy_s_with_its_options(asked, applied, chosen_by):
    policy = Policy(default_method="cdpruner", default_options={"relevance_sign": "-", "theta": 0.5})
    result = policy.apply(OPEN, asked)
    assert (result.method.name, dict(result.method.options)) == (applied.name, dict(applied.options))
    assert result.method_chosen_by == chosen_by


def test_caller_is_told_what_was_applied():
    usage = gateway_pb2.Usage()
    Policy(default_budget="64").apply(OPEN, method("random")).report_to(usage)
    told = gateway_pb2.Usage(budget=types_pb2.Budget(tokens=64), budget_chosen_by=POLICY)
    told.method, told.method_chosen_by = "random", REQUEST
    assert usage == told


def test_default_method_that_no_encoder_has_is_the_operator_s_fault():
    check_default_method(method("magic"), ())  # no encoder has answered yet
    with pytest.raises(
        Failed, match=r"the policy's default 'magic' is no method of this model; name one of fsr, random"
    ):
        check_default_method(method("magic"), ("fsr", "random"))


def test_policy_in_a_list_of_models_has_default_and_bounds():
    message = Policy(max_tokens=128, default_options={"rho": 0.5}).message()
    assert budget_text(message.default_budget) == "auto:..128" and message.default_method == "fsr"
    assert message.bounds == types_pb2.TokenBounds(max_tokens=128) and message.default_options["rho"] == 0.5
    assert not Policy().message().HasField("bounds")


def test_policies_of_several_places_are_merged_field_by_field():
    service = Policy(default_budget="64", min_tokens=8, max_tokens=128)
    merged = resolve(service, Policy(max_tokens=256), Policy(), Policy(default_budget="200", min_tokens=0))
    assert merged == Policy(default_budget="200", min_tokens=0, max_tokens=256)


def test_options_of_a_method_do_not_go_to_another_one():
    fsr = Policy(default_options={"rho": 0.7})
    assert resolve(fsr, Policy(default_method="random")).default_options == {}
    assert resolve(fsr, Policy(max_tokens=9)).default_options == {"rho": 0.7}
    assert resolve(fsr, Policy(default_options={"kappa": 2})).default_options == {"kappa": 2}
    one_place = Policy(default_method="random", default_options={"seed": 1})
    assert resolve(fsr, one_place).default_options == {"seed": 1}


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([{"min_tokens": 32}, {"max_tokens": 16}], "max_tokens: 16 is below min_tokens 32; raise it"),
        (
            [{"default_budget": "64"}, {"max_tokens": 32}],
            "default_budget: 64 is outside of 1..32, which min_tokens and",
        ),
        ([{"default_budget": "8", "min_tokens": 16}], "default_budget: 8 is outside of 16..all"),
        (
            [{"default_budget": "auto:200..300", "max_tokens": 128}],
            "default_budget: auto:200..300 is outside of 1..128",
        ),
    ],
)
def test_policies_that_contradict_each_other_are_refused(places, says):
    with pytest.raises(ValueError) as caught:
        resolve(*(Policy(**fields) for fields in places))
    assert str(caught.value).startswith(says)
