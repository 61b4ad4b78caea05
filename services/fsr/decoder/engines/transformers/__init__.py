"""The embedded engine: batched decoding on the transformers library, on CPU or GPU."""
