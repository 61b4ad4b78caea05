"""The methods Focus-Scan-Refine is compared with, one small file each, behind the same interface.

All of them work from what a `VisualTokens` holds, after the projector and before the language model. In it `saliency`
stands for the attention of the class token, and `keys` (else `features`) for the space in which a paper measures
similarity, be that the vision tower's keys or its hidden states. Each treats a sample by itself, so a batch cannot
change what it keeps; an `auto` budget keeps its maximum, because none of them says when to stop. FastV and SparseVLM
are not here: they prune inside the language model, which a gateway in front of it cannot do.
"""
