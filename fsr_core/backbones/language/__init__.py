"""Parts of the decoder halves: chat templates, visual rows among the text, the language model."""
