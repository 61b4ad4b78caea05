"""Whether the model can be loaded: its folder, or the way to the hub."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from fsr.cli.doctor.finding import Finding, finding
from fsr.common.process.environment import hub_cache_problem

__all__ = ["model"]

_EMBEDDED = "fsr-tiny"
_HUB = "https://huggingface.co"
_HUB_SECONDS = 10.0
_CHECK_SECONDS = 300.0
# The check that an encoder makes before it starts, which loads no weights.
_CHECK = """
import sys
from fsr.encoder.__main__ import check_checkpoint
from fsr.encoder.settings import EncoderSettings
check_checkpoint(EncoderSettings(model=sys.argv[1], clip=sys.argv[2] or None))
"""


def model(name: str, clip: str | None) -> Finding:
    """The model of `fsr up --model`: embedded, a folder, or a hub id."""
    if name == _EMBEDDED:
        return Finding("ok", "model", f"{name} is part of the package")
    if Path(name).is_dir():
        return _folder(name, clip)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return Finding(
            "error", "model", f"--model: {name} is no folder, and no hub id (organisation/name); check the path"
        )
    return _hub(name)


def _folder(name: str, clip: str | None) -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHECK, name, clip or ""], capture_output=True, text=True, timeout=_CHECK_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("error", "model", f"{name} cannot be read within {_CHECK_SECONDS:g} s; look for a slow disk")
    last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("error: ")
    return finding("model", f"{name} can be served", last if done.returncode else None)


def _hub(name: str) -> Finding:
    hub = os.environ.get("HF_ENDPOINT", _HUB).rstrip("/")
    if _is_cached(name):
        return Finding("ok", "model", f"{name} has been downloaded")
    remedy = "download it where the hub can be reached, and give its folder: fsr up --model FOLDER"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(
            "error", "model", f"HF_HUB_OFFLINE is set, and {name} is not on this machine; unset it, or {remedy}"
        )
    if problem := hub_cache_problem():
        return Finding("error", "model", problem)
    headers = {"Authorization": f"Bearer {token}"} if (token := _token()) else {}
    request = urllib.request.Request(f"{hub}/{name}/resolve/main/config.json", method="HEAD", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
            return Finding("ok", "model", f"{name} is on {hub}")
    except urllib.error.HTTPError as error:
        says = f"{hub} answers {error.code} for {name}"
        token_needed = " or, for a model that is not public, set HF_TOKEN" if error.code in (401, 403) else ""
        return Finding("error", "model", f"{says}; check the name{token_needed}")
    except (OSError, ValueError) as error:  # ValueError: HF_ENDPOINT is no address
        reason = getattr(error, "reason", error)
        remedy = f"check HF_ENDPOINT, https_proxy and the network, or {remedy}"
        return Finding("error", "model", f"{hub} cannot be reached ({reason}); {remedy}")


def _is_cached(name: str) -> bool:
    """Whether a snapshot lies in the hub's cache."""
    cache = Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub")
    return any((cache / f"models--{name.replace('/', '--')}").glob("snapshots/*/config.json"))


def _token() -> str | None:
    """The user's token for the hub, from the environment or as `hf auth login` stores it."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token").read_text().strip() or None
    except OSError:
        return None


def _home() -> Path:
    """The hub's folder; the variables are those of huggingface_hub."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("HF_HOME") or os.path.join(caches, "huggingface"))
