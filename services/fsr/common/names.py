"""The bound on names and ids in requests. They come back in errors and logs, and some go on to replicas."""

from __future__ import annotations

from fsr.common.errors import InvalidRequest

__all__ = ["MAX_NAME_CHARACTERS", "check_name"]

MAX_NAME_CHARACTERS = 512  # a model's name may be the path of a checkpoint's folder


def check_name(field: str, name: str) -> None:
    """Raises InvalidRequest, which does not repeat the name."""
    if len(name) > MAX_NAME_CHARACTERS:
        size = f"{len(name)} characters are more than {MAX_NAME_CHARACTERS}"
        raise InvalidRequest(f"{field}: {size}; send a shorter one")
