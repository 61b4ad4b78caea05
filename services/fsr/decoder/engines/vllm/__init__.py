"""The production engine: it hands prompts to vLLM."""
