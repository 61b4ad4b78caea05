"""Engines: they turn prompts of embeddings into streams of tokens."""
