from collections import Counter
from dataclasses import dataclass

from fsr.gateway.routing.balancing import power_of_two_choices, rendezvous


@dataclass
class Replica:
    address: str
    busyness: float = 0
    outstanding: int = 0


def test_power_of_two_choices_spreads_requests_and_avoids_the_busiest():
    replicas = [Replica(str(i), busyness=i) for i in range(4)]
    chosen = Counter(power_of_two_choices(replicas).address for _ in range(2000))
    assert chosen["0"] > chosen["1"] > chosen["2"] > 0 == chosen["3"]
    assert power_of_two_choices(replicas[:1]) is replicas[0]


def test_rendezvous_when_replicas_come_and_go_moves_only_their_keys():
    replicas, keys = [Replica(f"10.0.0.{i}:1") for i in range(5)], [bytes([i]) * 32 for i in range(200)]
    before = {key: rendezvous(replicas, key).address for key in keys}
    assert set(Counter(before.values())) == {replica.address for replica in replicas}
    after = {key: rendezvous(replicas[1:], key).address for key in keys}
    assert all(after[key] == where for key, where in before.items() if where != replicas[0].address)
    joined = {key: rendezvous([*replicas, Replica("10.0.0.9:1")], key).address for key in keys}
    assert all(joined[key] in (where, "10.0.0.9:1") for key, where in before.items())


def test_rendezvous_when_a_replica_is_far_above_the_mean_passes_it_over():
    replicas, key = [Replica(f"10.0.0.{i}:1") for i in range(3)], b"k" * 32
    first = rendezvous(replicas, key)
    first.outstanding = 8
    second = rendezvous(replicas, key)
    assert second is not first
    first.outstanding = 0
    assert rendezvous(replicas, key) is first
