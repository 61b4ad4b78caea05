import pytest

from fsr.common.errors import Forbidden, Unauthenticated
from fsr.gateway.auth import ANYBODY, ApiKeys


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# who may ask what\nalpha\nbeta small large\n")
    return ApiKeys(["gamma"], file), file


@pytest.mark.parametrize("authorization", ["Bearer alpha", "bearer  alpha", "Bearer gamma"])
def test_caller_when_its_key_names_no_model_may_use_all(keys, authorization):
    caller = keys[0].caller_of(authorization)
    caller.check_model("any model")
    assert caller.salt


def test_caller_when_its_key_names_models_may_use_only_these(keys):
    caller = keys[0].caller_of("Bearer beta")
    caller.check_model("small")
    with pytest.raises(Forbidden, match="ask large, small"):
        caller.check_model("huge")
    assert caller.salt != keys[0].caller_of("Bearer alpha").salt


def test_caller_when_no_keys_are_required_is_anybody():
    assert ApiKeys([], None).caller_of("") is ANYBODY


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Bearer delta", "Basic alpha", "alpha", "Bearer alph"]
)
def test_caller_when_its_key_is_unknown_is_refused(keys, authorization):
    with pytest.raises(Unauthenticated, match="authorization: "):
        keys[0].caller_of(authorization)


def test_keys_when_their_file_changes_are_read_again_and_when_it_goes_are_kept(keys):
    known, file = keys
    file.write_text("delta\n")
    known.refresh()
    known.caller_of("Bearer delta")
    with pytest.raises(Unauthenticated):
        known.caller_of("Bearer alpha")
    file.unlink()
    known.refresh()
    known.caller_of("Bearer delta")
