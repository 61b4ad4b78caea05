"""The embedded engine: batched decoding with the transformers library, on CPU or GPU."""
