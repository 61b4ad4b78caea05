"""Names of models, and the bound on names and ids in requests, which come back in errors and logs."""

from __future__ import annotations

from pathlib import Path

from fsr.common.errors import InvalidRequest

__all__ = ["MAX_NAME_CHARACTERS", "check_name", "served_name"]

MAX_NAME_CHARACTERS = 512


def check_name(field: str, name: str) -> None:
    """Raises InvalidRequest, which does not repeat the name."""
    if len(name) > MAX_NAME_CHARACTERS:
        size = f"{len(name)} characters are more than {MAX_NAME_CHARACTERS}"
        raise InvalidRequest(f"{field}: {size}; send a shorter one")


def served_name(model: str) -> str:
    """What callers call a model that is given no other name: a folder's own name, else the name or hub id itself."""
    folder = Path(model)
    return folder.resolve().name or model if folder.is_dir() else model
