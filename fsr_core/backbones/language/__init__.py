"""The decoder half: chat templates, visual rows spliced into the text, the language model."""
