"""Registers the model plugin with lmms-eval.

This is a file of its own because lmms-eval reads it during its own import, when `lmms_model` cannot be imported yet.
"""

from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["MANIFEST"]

MANIFEST = ModelManifest(model_id="fsr", simple_class_path="fsr_core.evaluation.lmms_model.CompressedVLM")
