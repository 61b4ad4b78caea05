"""Checkpoints in the hub's folder format: finding them, reading part of their weights, what they tell."""
