"""The encoder: turns pictures and a question into the visual tokens that matter, on Ray Serve."""
