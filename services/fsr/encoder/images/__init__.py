"""From an encoded image to pixels, and what that may cost."""
