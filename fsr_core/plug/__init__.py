"""Compression on a live model of the transformers library, without the services."""

from fsr_core.plug.compressed_model import compressed

__all__ = ["compressed"]
