"""What every refusal is, whoever refuses: short, in the caller's words, and of the allowed statuses."""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence

from helpers.hostile.callers import Outcome

__all__ = ["check_outcomes"]

MOST_CHARACTERS = 2000
# A traceback, a file of ours or of a library, an address in memory, a process, an address of the network, Ray's words.
_INTERNALS = re.compile(
    r"Traceback|File \"|site-packages|\.py\b|\b0x[0-9a-f]{6,}|\bpid\b|\d+\.\d+\.\d+\.\d+:\d+|RayTask|ray::|Exception"
)
_ADDRESSES = {"fsr-encoders", "fsr-decoders"}  # only where asked for


def check_outcomes(outcomes: Sequence[Outcome], allowed: Collection[str], silent: bool = False) -> Counter[str]:
    """How often each code came. AssertionError, which shows some of them, for those that should not be.

    `silent`: whether an error may say nothing, as those of gRPC's own services do.
    """
    faults = [f"{one.what[:200]}: {fault}" for one in outcomes if (fault := _fault(one, allowed, silent))]
    counts = Counter(one.code for one in outcomes)
    assert not faults, "\n".join([f"{len(faults)} of {len(outcomes)} {dict(counts)}", *faults[:25]])
    return counts


def _fault(outcome: Outcome, allowed: Collection[str], silent: bool) -> str | None:
    shown = f"{outcome.code} {outcome.details[:300]!r} {outcome.seconds:.1f} s"
    if outcome.code not in allowed:
        return shown
    if leaked := _ADDRESSES & outcome.trailers.keys():
        return f"{shown} trailers have {leaked}"
    if outcome.code in ("OK", "200"):
        return None
    if outcome.code.isdecimal():
        return _http_fault(outcome) or _text_fault(outcome.details, shown)
    if not outcome.details and not silent and not outcome.code.startswith(("CLOSED", "OPEN", "RESET", "HTTP")):
        return f"{shown} says nothing"
    return _text_fault(outcome.details, shown)


def _text_fault(text: str, shown: str) -> str | None:
    if len(text) > MOST_CHARACTERS:
        return f"{shown} of {len(text)} characters"
    if found := _INTERNALS.search(text):
        return f"{shown} has {found[0]!r} in it"
    return None


def _http_fault(outcome: Outcome) -> str | None:
    try:
        error = json.loads(outcome.details)["error"]
        whole = error["message"] and error["type"] and error.keys() >= {"param", "code"}
    except (ValueError, KeyError, TypeError):
        whole = False
    return None if whole else f"{outcome.code} {outcome.details[:300]!r} is no error object"
