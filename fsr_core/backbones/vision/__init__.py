"""Parts of the encoder halves: pixels, vision towers, saliency, and the text side of the joint space."""
