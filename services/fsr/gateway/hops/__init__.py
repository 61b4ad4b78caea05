"""The calls to encoder and decoder, and what their replies become."""
