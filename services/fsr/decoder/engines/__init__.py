"""Engines that turn a prompt of embeddings into a stream of tokens."""
