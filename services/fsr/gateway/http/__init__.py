"""The HTTP interface: OpenAI's chat API and ours, over the same pipeline as gRPC."""
