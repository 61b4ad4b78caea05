"""Who calls: the file of keys of the gateway under attack."""

__all__ = ["ANOTHER", "FILE", "HOSTILE", "NEIGHBOUR"]

NEIGHBOUR, HOSTILE, ANOTHER = "the-neighbour", "the-hostile-one", "another"
FILE = f"""
keys:
  - {{key: {NEIGHBOUR}, name: neighbour}}
  - {{key: {HOSTILE}, name: hostile}}
  - {{key: {ANOTHER}, name: another}}
"""
