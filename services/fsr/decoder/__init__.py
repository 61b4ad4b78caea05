"""The decoder: a language model replica that answers from compressed tokens."""
