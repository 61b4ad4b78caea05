import pytest

from fsr.cli.calibrate.ladder import ALL_TOKENS, ladder
from fsr.client.errors import InvalidRequestError


def test_ladder_has_the_largest_budget_of_each_method_first():
    made = ladder("0.1,0.5, 0.1", "fsr,divprune,fsr", {})
    assert [[str(one) for one in candidates] for candidates in made] == [
        ["fsr 0.5", "fsr 0.1"],
        ["divprune 0.5", "divprune 0.1"],
    ]
    assert str(ALL_TOKENS) == "all tokens"


def test_ladder_when_there_is_one_method_takes_its_options():
    ((candidate,),) = ladder("16", "fsr", {"rho": 0.7})
    assert (candidate.budget, candidate.options) == (16, {"rho": 0.7})


@pytest.mark.parametrize(
    ("budgets", "methods", "options", "message"),
    [
        ("16,0.5", "fsr", {}, "--budgets: '16,0.5' mixes"),
        ("auto", "fsr", {}, "--budgets: 'auto' has no place in a ladder"),
        ("x", "fsr", {}, "--budgets: 'x' is no budget"),
        ("0", "fsr", {}, "--budgets: 0 is out of range"),
        ("1.0", "fsr", {}, "--budgets: 1.0 is out of range"),
        ("nan", "fsr", {}, "--budgets: 'nan' is no budget"),
        ("0.1,", "fsr", {}, "--budgets: '0.1,' has an empty place"),
        ("0.1", "", {}, "--methods: '' has an empty place"),
        ("0.1", "fsr,dart", {"rho": 1}, "--option: belongs to one method"),
    ],
)
def test_ladder_when_it_makes_no_sense_names_the_option(budgets, methods, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        ladder(budgets, methods, options)
