"""Metrics, the record of a request, and what spans say of it."""
