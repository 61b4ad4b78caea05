"""`fsr keys`, and what the gateway makes of its entries."""

import json
import re

import pytest
from typer.testing import CliRunner

from fsr.cli.main import app
from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.callers.keys_file import digest_of


def keys(*arguments, **options):
    return CliRunner().invoke(app, ["keys", *arguments], **options)


def test_new_key_is_known_to_a_gateway_by_its_hash_alone(tmp_path):
    file = tmp_path / "keys.yaml"
    first, second = keys("--name", "mobile: app"), keys()
    file.write_text("keys:\n" + first.stdout + second.stdout)
    known = ApiKeys([], file)
    for made, name in ((first, "mobile: app"), (second, "")):
        (key,) = re.findall(r"^key, for the caller alone: (\S{43})$", made.stderr, re.MULTILINE)
        assert key not in file.read_text() and known.caller_of(f"Bearer {key}").name == name


def test_key_that_exists_is_hashed(tmp_path):
    done = keys("--existing", "--json", input="open-sesame\n")
    assert json.loads(done.stdout) == {"sha256": digest_of("open-sesame").hex()} and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (["--existing"], "", "error: key: is empty"),
        (["--existing"], "open sesame", "error: key: is empty, or holds characters"),
        (["--existing"], "schl\u00fcssel", "error: key: is empty, or holds characters"),
        (["--name", "a" * 101], "", "error: --name: has more than 100 characters"),
    ],
)
def test_wrong_key_or_name_is_refused_in_one_line(arguments, given, says):
    done = keys(*arguments, input=given)
    assert done.exit_code == 1 and done.stderr.startswith(says) and done.stderr.count("\n") == 1
