"""The file of API keys, in one of two formats.

A file whose name ends in .yaml, .yml or .toml holds keys and policies (docs/policies.md). Any other one holds one key a
line, or `sha256:` and its hash, and the models that it may use.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fsr.gateway.options.policy import Policy

__all__ = ["Key", "KeysFile", "KeysFileError", "digest_of", "parse_keys_file"]

_YAML, _TOML = (".yaml", ".yml"), (".toml",)
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")  # a line of the plain format
_STRUCTURED = "a name that ends in .yaml, .yml or .toml"

ModelName = Annotated[str, Field(min_length=1)]


class KeysFileError(Exception):
    """The file cannot be used. The message says where and why; it never holds a key."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Strict):
    """A key and what its owner may do.

    `key` is the key itself, `sha256` the hexadecimal hash of one; a file holds either. `name` is for the logs. `models`
    are those that it may use, empty for all. `policy` applies to all of them, `policies` to each by its name. `weight`
    is its part of the slots beside other keys, `max_requests` the most of its requests in flight.
    """

    key: str | None = Field(default=None, repr=False)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    name: str = Field("", max_length=100)
    models: list[ModelName] = Field(default_factory=list)
    policy: Policy = Policy()
    policies: dict[ModelName, Policy] = Field(default_factory=dict)
    weight: float = Field(1.0, ge=0.001, le=1000, allow_inf_nan=False)
    max_requests: int | None = Field(None, ge=1, strict=True)

    @field_validator("key")
    @classmethod
    def _fits_a_header(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable() and value and " " not in value):
            raise ValueError("is empty, or holds characters that a header cannot carry; use ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give key, or sha256 with the hash of the key, and not both")
        barred = sorted(self.policies.keys() - set(self.models)) if self.models else []
        if barred:
            raise ValueError(f"policies.{barred[0]}: this key may not use that model; add it to models")
        return self

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the key."""
        return digest_of(self.key) if self.key is not None else bytes.fromhex(self.sha256 or "")


class KeysFile(_Strict):
    """The keys, and the policies of the service's models by their names."""

    keys: list[Key] = Field(default_factory=list)
    policies: dict[ModelName, Policy] = Field(default_factory=dict)


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key."""
    return hashlib.sha256(key.encode()).digest()


def parse_keys_file(path: Path, content: bytes) -> KeysFile:
    """The content of the file at `path`, in the format that its name says. Raises KeysFileError."""
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise KeysFileError(f"is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    suffix = path.suffix.lower()
    if suffix not in (*_YAML, *_TOML):
        return _lines(text)
    data = _yaml(text) if suffix in _YAML else _toml(text)
    if not isinstance(data, dict):
        raise KeysFileError("holds no fields; write keys: and a list of keys, each with key: or sha256:")
    try:
        file = KeysFile.model_validate(data)
    except ValidationError as error:
        raise KeysFileError(_first_problem(error)) from None  # the cause would hold what was in the file
    seen: dict[bytes, int] = {}
    for i, key in enumerate(file.keys):
        if key.digest in seen:
            raise KeysFileError(f"keys[{i}]: is the same key as keys[{seen[key.digest]}]; leave one of them out")
        seen[key.digest] = i
    return file


def _lines(text: str) -> KeysFile:
    """One key a line, and its models. Of two lines with the same key the last one counts."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, *models = line.split()
        if key == "-" or key.endswith(":") or key.startswith("[") or (models and models[0] == "="):
            raise KeysFileError(f"line {number}: looks like YAML or TOML; give such a file {_STRUCTURED}")
        if hashed := _HASHED.fullmatch(key):
            keys[key] = Key.model_construct(sha256=hashed[1], models=models)
        else:
            keys[key] = Key.model_construct(key=key, models=models)  # any word is a key here, as it always was
    return KeysFile.model_construct(keys=list(keys.values()), policies={})


class _Loader(yaml.SafeLoader):
    """Refuses a name that comes twice in a mapping; YAML's loader would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"{twice} comes twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # Not the whole error: it quotes the line, which may hold a key.
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise KeysFileError(f"{line}is no YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KeysFileError(f"is no YAML ({type(error).__name__})") from None


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeysFileError(f"is no TOML ({error})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists in lists
        raise KeysFileError(f"is no TOML ({type(error).__name__})") from None


def _first_problem(error: ValidationError) -> str:
    """Place and reason of the first problem, and how many more there are."""
    first, *others = error.errors(include_input=False, include_url=False)
    place = _place(first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"is no field here; use {', '.join(_fields_beside(first['loc']))}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {message}{more}"


def _place(location: tuple[int | str, ...]) -> str:
    """`keys[0].policy.max_tokens`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """The fields that may stand where an unknown one stands."""
    kind: type[BaseModel] = Policy
    if len(location) == 1:
        kind = KeysFile
    elif isinstance(location[-2], int):
        kind = Key
    return list(kind.model_fields)
