"""The encoder: pictures and a question in, the visual tokens that matter out, on Ray Serve."""
