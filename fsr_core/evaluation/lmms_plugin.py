"""What lmms-eval is told of the plugin; apart from it, because lmms-eval reads this while it is still being imported."""

from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["MANIFEST"]

MANIFEST = ModelManifest(model_id="fsr", simple_class_path="fsr_core.evaluation.lmms.CompressedVLM")
