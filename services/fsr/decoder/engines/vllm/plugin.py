"""What vLLM calls in each of its processes, through the entry point ``vllm.general_plugins``.

Only vLLM calls it, so it does nothing where vLLM is not installed.
"""

from __future__ import annotations

__all__ = ["ARCHITECTURE", "register"]

#: The name of our model class in vLLM's registry, and in the configuration that vLLM reads.
ARCHITECTURE = "FsrMultiAxisForCausalLM"


def register() -> None:
    """Tells vLLM where our model class is. vLLM imports the class only for a checkpoint that names it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "fsr.decoder.engines.vllm.multi_axis:MultiAxisForCausalLM")
