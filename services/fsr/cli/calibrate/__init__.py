"""`fsr calibrate`: the cheapest budget that keeps the answers to a user's own questions."""
