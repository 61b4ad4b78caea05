"""The file of keys: its formats, its mistakes, and who gets which policy."""

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fsr.common.errors import Forbidden
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.callers.keys_file import KeysFileError, digest_of, parse_keys_file
from fsr.gateway.options.policy import Policy

PAGE = (Path(__file__).parents[4] / "docs/policies.md").read_text()
SECRET = "s3cret-key"

YAML = f"""
policies:
  small: {{default_budget: 64, max_tokens: 192}}
keys:
  - key: {SECRET}
  - sha256: {digest_of("hidden").hex()}
    name: app
    models: [small, large]
    policy: {{default_budget: 0.5, default_method: random, default_options: {{seed: 1}}}}
    policies:
      large: {{max_tokens: 32}}
"""
TOML = f"""
[policies]
small = {{default_budget = 64, max_tokens = 192}}
[[keys]]
key = "{SECRET}"
[[keys]]
sha256 = "{digest_of("hidden").hex().upper()}"
name = "app"
models = ["small", "large"]
policy = {{default_budget = 0.5, default_method = "random", default_options = {{seed = 1}}}}
policies.large = {{max_tokens = 32}}
"""


@pytest.fixture
def keys_of(tmp_path):
    def make(text, name="keys.yaml", policy=None, options=()):
        path = tmp_path / name
        path.write_text(text)
        return ApiKeys(options, path, policy or Policy())

    return make


def caller(keys, key):
    return keys.caller_of(f"Bearer {key}")


@pytest.mark.parametrize(("text", "name"), [(YAML, "keys.yaml"), (YAML, "keys.YML"), (TOML, "keys.toml")])
def test_policy_of_a_caller_is_taken_from_the_most_specific_place(keys_of, text, name):
    keys = keys_of(text, name, Policy(default_budget="16", min_tokens=4))
    plain, app = caller(keys, SECRET), caller(keys, "hidden")
    assert plain.policy_for("other") == Policy(default_budget="16", min_tokens=4)
    assert plain.policy_for("small") == Policy(default_budget="64", min_tokens=4, max_tokens=192)
    own = {"default_budget": "0.5", "default_method": "random", "default_options": {"seed": 1}, "min_tokens": 4}
    assert app.policy == Policy(**own)
    assert app.policy_for("small") == Policy(**own, max_tokens=192)
    assert app.policy_for("large") == Policy(**own, max_tokens=32)
    assert (plain.name, app.name, plain.may_use("other"), app.may_use("other")) == ("", "app", True, False)


def test_key_is_the_same_caller_in_every_format(keys_of):
    files = {"keys.yaml": f"keys: [{{key: {SECRET}}}]", "k.yml": f"keys: [{{sha256: {digest_of(SECRET).hex()}}}]"}
    salts = {caller(keys_of(text, name), SECRET).salt for name, text in (files | {"keys": SECRET}).items()}
    assert len(salts) == 1


def test_line_with_a_hash_is_the_key_that_it_is_of(keys_of):
    keys = keys_of(f"sha256:{digest_of(SECRET).hex().upper()} small\n", "keys")
    assert caller(keys, SECRET).models == {"small"}


@pytest.mark.parametrize(
    ("text", "name", "plain"),
    [
        (YAML, "keys.yaml", 1),
        (f"a\nb\nsha256:{digest_of('c').hex()}\n", "keys", 2),
        (f"keys: [{{sha256: {digest_of('c').hex()}}}]", "keys.yaml", 0),
    ],
)
def test_keys_in_plain_text_are_a_warning_that_names_none(keys_of, text, name, plain):
    with capture_logs() as logs:
        keys_of(text, name)
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert [line["keys"] for line in warnings] == ([plain] if plain else [])
    assert all("fsr keys --existing" in line["remedy"] and SECRET not in str(line) for line in warnings)


def test_key_of_the_options_has_the_service_s_policies_and_the_file_goes_before(keys_of):
    keys = keys_of(YAML, options=("extra", "hidden"), policy=Policy(default_budget="16"))
    assert caller(keys, "extra").policy_for("small").max_tokens == 192
    assert caller(keys, "extra").policy_for("other").default_budget == "16"
    assert caller(keys, "hidden").name == "app"


def test_service_s_policy_applies_where_no_key_is_needed():
    anybody = ApiKeys([], None, Policy(default_budget="16")).caller_of("")
    assert anybody.policy_for("any").default_budget == "16"


def test_model_that_a_key_may_not_use_does_not_contradict_its_policy(keys_of):
    text = "policies: {small: {max_tokens: 32}}\nkeys: [{key: a, models: [large], policy: {default_budget: 64}}]"
    assert caller(keys_of(text), "a").policy_for("large").default_budget == "64"
    with pytest.raises(Forbidden):
        caller(keys_of(text), "a").check_model("small")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no fields; write keys: and a list of keys"),
        ("- a\n- b", "holds no fields; write keys:"),
        ("keys: [a, b", r"line 1: is no YAML \(expected"),
        ("keys:\n  - key: @a", r"line 2: is no YAML \(found character"),
        ("keys: []\nkeys: []", r"line 1: is no YAML \(keys comes twice\)"),
        ("keys: [{key: a, policy: {max_tokens: 1, max_tokens: 2}}]", r"line 1: is no YAML \(max_tokens comes twice\)"),
        ("key: []", r"^key: is no field here; use keys, policies$"),
        (
            "keys: [{key: a, model: b}]",
            r"^keys\[0\]\.model: is no field here; use key, sha256, name, models, policy, pol",
        ),
        (
            "keys: [{key: a}, {key: b, policy: {max_token: 3}}]",
            r"^keys\[1\]\.policy\.max_token: is no field here; use def",
        ),
        ("policies: {m: {bugdet: 3}}", r"^policies\.m\.bugdet: is no field here; use default_budget, default_method"),
        ("keys: {a: {}}", r"^keys: Input should be a valid list"),
        ("keys: [{name: a}]", r"^keys\[0\]: give key, or sha256 with the hash of the key, and not both"),
        ("keys: [{key: 12345}]", r"^keys\[0\]\.key: Input should be a valid string"),
        ("keys: [{sha256: abc}]", r"^keys\[0\]\.sha256: String should match pattern"),
        (
            "keys: [{key: a, policy: {max_tokens: true}}]",
            r"^keys\[0\]\.policy\.max_tokens: Input should be a valid int",
        ),
        ("keys: [{key: a, policy: {max_tokens: -1}}]", r"^keys\[0\]\.policy\.max_tokens: Input should be greater"),
        (
            "keys: [{key: a, policy: {max_tokens: }}]",
            r"^keys\[0\]\.policy\.max_tokens: Input should be a valid integer",
        ),
        (
            "keys: [{key: a, policy: {default_budget: 0}}]",
            r"^keys\[0\]\.policy\.default_budget: '0' is no budget; write",
        ),
        ("keys: [{key: a, policy: {default_budget: yes}}]", r"^keys\[0\]\.policy\.default_budget: True is no budget"),
        (
            "policies: {m: {default_options: {rho: .nan}}}",
            r"^policies\.m\.default_options: option\.rho: nan is no finite",
        ),
        (
            "policies: {m: {default_options: {rho: 2026-01-01}}}",
            r"^policies\.m\.default_options: .*; values are numbers",
        ),
        ("policies: {m: {min_tokens: 3, max_tokens: 2}}", r"^policies\.m: max_tokens: 2 is below min_tokens 3"),
        ("keys: [{key: a, policy: {max_tokens: 8}}]", r"^keys\[0\]\.policy: default_budget: 16 is outside of 1\.\.8"),
        ("keys: [{key: a, policies: {m: {max_tokens: 8}}}]", r"^keys\[0\]\.policies\.m: default_budget: 16 is outside"),
        (
            "policies: {m: {max_tokens: 32}}\nkeys: [{key: a, policy: {default_budget: 64}}]",
            r"^keys\[0\]\.policy on model m: default_budget: 64 is outside of 1\.\.32",
        ),
        (
            "keys: [{key: a, models: [b], policies: {c: {}}}]",
            r"^keys\[0\]: policies\.c: this key may not use that model",
        ),
        ("keys: [{key: a, x: 1}, {y: 2}]", r"^keys\[0\]\.x: is no field here; .* \(and 1 more\)$"),
    ],
)
def test_mistake_in_the_file_is_refused_with_its_place(keys_of, text, says):
    with pytest.raises(KeysFileError, match=says) as caught:
        keys_of(text, policy=Policy(default_budget="16"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.yaml", f"keys:\n  - key: {SECRET}: x\n"),
        ("keys.yaml", f"keys:\n  - key: '{SECRET} '\n"),
        ("keys.yaml", f"keys:\n  - key: {SECRET}\n  - key: {SECRET}\n"),
        ("keys.yaml", f"keys:\n  - sha256: {SECRET}\n"),
        ("keys.yaml", f"keys:\n  - {SECRET}\n"),
        ("keys.yaml", f"keys: [&a {SECRET}, *b]\n"),
        ("keys.toml", f'[[keys]]\nkey = "{SECRET}\n'),
        ("keys.toml", f'[[keys]]\nkey = {SECRET}"\n'),
        ("keys", f"- key: {SECRET}\n"),
        ("keys", f'key = "{SECRET}"\n'),
    ],
)
def test_mistake_when_a_key_is_near_does_not_show_the_key(keys_of, name, text):
    with pytest.raises(KeysFileError) as caught:
        keys_of(text, name)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_structured_file_without_its_suffix_is_no_list_of_keys(keys_of):
    """Else `keys:` and `-` would be valid keys."""
    with pytest.raises(
        KeysFileError, match=r"line 2: looks like YAML or TOML; give such a file a name that ends in \.y"
    ):
        keys_of(YAML, "keys")
    with pytest.raises(KeysFileError, match="line 2: looks like"):
        keys_of(TOML, "keys.txt")


@pytest.mark.parametrize("name", ["keys.yaml", "keys.toml"])
@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "[" * 5000])
def test_value_that_nothing_can_hold_is_refused_too(keys_of, name, value):
    text = f"policies.m.default_options.rho = {value}"
    if name == "keys.yaml":
        text = f"policies: {{m: {{default_options: {{rho: {value}}}}}}}"
    with pytest.raises(KeysFileError, match=r"^is no |: is no |^policies\.m\.default_options: "):
        keys_of(text, name)


@pytest.mark.parametrize("name", ["keys", "keys.yaml", "keys.toml"])
def test_file_with_a_byte_order_mark_loses_nothing(tmp_path, name):
    text = {"keys": f"{SECRET}\r\nother\r\n", "keys.yaml": YAML, "keys.toml": TOML}[name]
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert ApiKeys((), tmp_path / name).caller_of(f"Bearer {SECRET}").salt


def test_entry_of_a_key_has_its_part_of_the_slots(keys_of):
    keys = keys_of("keys: [{key: a, weight: 2.5, max_requests: 3}, {key: b}]")
    assert [(caller(keys, key).weight, caller(keys, key).max_requests) for key in "ab"] == [(2.5, 3), (1.0, 0)]


@pytest.mark.parametrize("entry", ["weight: 0", "weight: -1", "weight: .nan", "max_requests: 0", "max_requests: 1.5"])
def test_part_of_the_slots_that_is_impossible_is_refused_with_its_place(keys_of, entry):
    with pytest.raises(KeysFileError, match=rf"^keys\[0\]\.{entry.partition(':')[0]}: "):
        keys_of(f"keys: [{{key: a, {entry}}}]")


def test_file_that_is_no_utf_8_says_where():
    with pytest.raises(KeysFileError, match="is not UTF-8 at byte 3"):
        parse_keys_file(Path("keys"), b"abc\xff")


@pytest.mark.parametrize("language", ["yaml", "toml"])
def test_example_of_the_page_is_a_valid_file(keys_of, language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    keys = keys_of(text, f"keys.{language}", Policy(default_budget="64", max_tokens=128))
    batch = caller(keys, "batch-jobs-8471").policy_for("llava-1.5-7b")
    assert (batch.default_budget, batch.max_tokens) == ("1.0", 0)
    assert caller(keys, "open-sesame").policy_for("llava-1.5-7b").max_tokens == 192
