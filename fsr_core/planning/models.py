"""Figures of models: built in for well-known ones, else counted from a configuration."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fsr_core.planning.figures import ModelFigures
from fsr_core.savings import Geometry

__all__ = ["PUBLISHED", "model_figures", "published"]

#: Written by `python -m benchmarks.model_figures --write`.
PUBLISHED = Path(__file__).with_name("published.json")


@cache
def published() -> dict[str, ModelFigures]:
    """The built-in figures, by name in small letters."""
    rows: list[dict[str, Any]] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {row["name"].lower(): ModelFigures(**row | {"geometry": Geometry(**row["geometry"])}) for row in rows}


def model_figures(model: str) -> ModelFigures:
    """The figures of a well-known model, of a folder with a ``config.json``, or of a hub id.

    Of a hub id only the configuration is fetched. Folders and hub ids need transformers and torch, which count the
    parameters without any memory for them.

    Raises:
        ValueError: the model is not known and its configuration cannot be read, or its family is not served.
    """
    if model.lower() in published():
        return published()[model.lower()]
    known = f"the figures of {', '.join(figures.name for figures in published().values())} are built in"
    is_folder = Path(model).is_dir()
    if is_folder and not (Path(model) / "config.json").is_file():
        raise ValueError(f"model: {model} has no config.json; name the folder of a checkpoint")
    if not is_folder and (model.count("/") != 1 or model.startswith((".", "/", "~"))):
        raise ValueError(f"model: {model!r} is neither a folder nor a hub id (owner/name); {known}")
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise ValueError(
            f"model: {missing[0]} is missing, which reads the configuration of {model}; pip install"
            f" 'fsr-gateway[core]'; {known}"
        )
    from fsr_core.planning.counting import count, read_config  # imports torch

    try:
        config = read_config(model)
    except ValueError as error:
        remedy = "repair it" if is_folder else f"give a folder with its config.json; {known}"
        raise ValueError(f"model: the configuration of {model} cannot be read ({error}); {remedy}") from error
    return count(model, config)
