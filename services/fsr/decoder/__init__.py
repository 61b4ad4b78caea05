"""The decoder: a replica of the language model that answers from compressed tokens."""
