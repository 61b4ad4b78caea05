"""Hypothesis, for every unit test that uses it."""

import hypothesis

# The same examples in every run, and no clock that a slow machine could exceed.
hypothesis.settings.load_profile("ci")
