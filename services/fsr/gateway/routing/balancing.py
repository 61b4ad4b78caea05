"""Which of several replicas gets the next request."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from math import ceil

from fsr.gateway.routing.replica import Replica

__all__ = ["power_of_two_choices", "rendezvous"]

_LOAD_BOUND = 1.25  # an encoder with more than so many times the mean load is passed over


def power_of_two_choices(replicas: Sequence[Replica]) -> Replica:
    """The less busy one of two that are drawn at random (Mitzenmacher 2001)."""
    return min(random.sample(replicas, min(2, len(replicas))), key=lambda replica: replica.busyness)


def rendezvous(replicas: Sequence[Replica], key: bytes) -> Replica:
    """Highest random weight (Thaler and Ravishankar 1998): the same key leads to the same replica, and when a replica
    comes or goes, only its own keys move. A replica far above the mean load is passed over (bounded loads, Mirrokni,
    Thorup and Zadimoghaddam 2018)."""
    ranked = sorted(replicas, key=lambda r: hashlib.blake2b(r.address.encode(), key=key[:64]).digest(), reverse=True)
    bound = ceil(_LOAD_BOUND * (sum(replica.outstanding for replica in replicas) + 1) / len(replicas))
    return next(replica for replica in ranked if replica.outstanding < bound)
