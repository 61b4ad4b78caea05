"""Waiting for what another process does, by what it says of itself."""

import time
from collections.abc import Callable, Sequence


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Waits until `condition()` is true; AssertionError after `seconds`, which no test comes near unless it fails."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still false after {seconds:g} s"
        time.sleep(0.02)


def wait_until_generating(decoders: Sequence, answers: int, tokens: int) -> None:
    """Until `decoders` together work on so many answers at a time, and have generated so many tokens meanwhile.

    They are asked together: while one is waited for, the others may end all they have.
    """
    before = sum(decoder.generated() for decoder in decoders)

    def generating() -> bool:
        running = sum(decoder.metric("fsr_decoder_running_requests") for decoder in decoders)
        return running >= answers and sum(decoder.generated() for decoder in decoders) >= before + tokens

    until(generating)
