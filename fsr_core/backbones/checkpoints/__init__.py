"""Checkpoints in the hub's folder format: where they are, part of their weights, facts about their models."""
