"""The methods that Focus-Scan-Refine is compared with, one small file each, with the same interface.

All of them work on `VisualTokens`, after the projector and before the language model. There `saliency` stands for the
attention of the class token, and `keys` (else `features`) for the space in which a paper measures similarity: the
vision tower's keys or its hidden states. Each method treats a sample by itself, so a batch cannot change its choice. An
`auto` budget keeps its maximum, because no method says when to stop. FastV and SparseVLM are not here: they prune
inside the language model, and a gateway in front of it cannot do that.
"""
