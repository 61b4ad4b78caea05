"""What lmms-eval is told of the plugin; a file of its own, because lmms-eval reads it while it is being imported."""

from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["MANIFEST"]

MANIFEST = ModelManifest(model_id="fsr", simple_class_path="fsr_core.evaluation.lmms_model.CompressedVLM")
