"""A call, its deadline, and what every step gets of it."""
