"""The engine that hands prompts to vLLM."""
