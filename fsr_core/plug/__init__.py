"""Compresses visual tokens inside a live model of the transformers library. No service is needed."""

from fsr_core.plug.compressed_model import compressed

__all__ = ["compressed"]
