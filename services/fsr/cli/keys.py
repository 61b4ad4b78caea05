"""`fsr keys`"""

from __future__ import annotations

import getpass
import hashlib
import json
import secrets
import sys
from typing import Annotated

import typer

from fsr.cli.options import AsJson
from fsr.cli.terminal import fail

__all__ = ["keys"]

_BYTES = 32  # of a new key: nobody guesses it from its hash


def keys(
    name: Annotated[str | None, typer.Option(help="whose key it is, for the gateway's log")] = None,
    existing: Annotated[
        bool, typer.Option("--existing", help="hash a key that you have; it is read from standard input")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an API key for a caller, and its entry for the gateway's file of keys, which holds only its hash.

    The entry goes to standard output, the key to standard error: it is stored nowhere.

    example: fsr keys --name mobile-app

    example: echo keys: > keys.yaml && fsr keys >> keys.yaml && fsr up --api-keys-file keys.yaml
    """
    if name is not None and (len(name) > 100 or not name.isprintable()):
        fail("--name: has more than 100 characters, or some that cannot be printed; shorten it")
    key = _existing_key() if existing else secrets.token_urlsafe(_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    entry = {"sha256": digest} | ({"name": name} if name else {})
    if as_json:
        print(json.dumps(entry if existing else {"key": key} | entry))
        return
    if not existing:
        print(f"key, for the caller alone: {key}", file=sys.stderr)
    print(f"  - {json.dumps(entry)}")  # JSON is YAML


def _existing_key() -> str:
    key = (getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key or not (key.isascii() and key.isprintable()) or " " in key:
        fail("key: is empty, or holds characters that a header cannot carry; use ASCII without spaces")
    return key
