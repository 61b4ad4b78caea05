"""Who calls: the file of keys of the gateway under attack.

The hostile key has the bound that `docs/policies.md` gives to a key that nobody vouches for. The unbounded one has only
what every key has: its fair part of the slots.
"""

__all__ = ["ANOTHER", "FILE", "HOSTILE", "NEIGHBOUR", "UNBOUNDED"]

NEIGHBOUR, HOSTILE, UNBOUNDED, ANOTHER = "the-neighbour", "the-hostile-one", "the-unbounded-one", "another"
FILE = f"""
keys:
  - {{key: {NEIGHBOUR}, name: neighbour}}
  - {{key: {HOSTILE}, name: hostile, max_requests: 8}}
  - {{key: {UNBOUNDED}, name: unbounded}}
  - {{key: {ANOTHER}, name: another}}
"""
