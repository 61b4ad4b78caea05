"""What the process keeps of the memory of large messages."""

from __future__ import annotations

import ctypes

__all__ = ["give_back_large_blocks"]

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 8 * 2**20  # bytes; common features have less, and blocks that are used again need not be cleared again


def give_back_large_blocks() -> None:
    """From now on large blocks go back to the system as soon as they are free.

    By default glibc keeps more of them once a large one was freed, up to 32 MiB each (mallopt(3)): after some messages
    of 20 MiB the gateway had 190 MB in place of 84. Does nothing where there is another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
