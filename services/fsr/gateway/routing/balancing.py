"""Which of several replicas gets the next request."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from math import ceil

from fsr.gateway.routing.replica import Replica

__all__ = ["less_busy_of_two", "rendezvous"]

_BOUND = 1.25  # times the mean load that an encoder may have before the next in line is asked


def less_busy_of_two(replicas: Sequence[Replica]) -> Replica:
    """Power of two choices (Mitzenmacher 2001): two at random, of which the less busy one."""
    return min(random.sample(replicas, min(2, len(replicas))), key=lambda replica: replica.busyness)


def rendezvous(replicas: Sequence[Replica], key: bytes) -> Replica:
    """Highest random weight (Thaler and Ravishankar 1998): the same key finds the same replica, and when a replica
    comes or goes only its own keys move. A replica far above the mean load is passed over (bounded loads, Mirrokni,
    Thorup and Zadimoghaddam 2018)."""
    ranked = sorted(replicas, key=lambda r: hashlib.blake2b(r.address.encode(), key=key[:64]).digest(), reverse=True)
    allowed = ceil(_BOUND * (sum(replica.outstanding for replica in replicas) + 1) / len(replicas))
    return next(replica for replica in ranked if replica.outstanding < allowed)
