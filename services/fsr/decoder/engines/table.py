"""The engines that `--engine` can choose. To add an engine, add a line here and its name to `EngineName`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsr.decoder.engines.base import Engine
from fsr.decoder.settings import EngineName

__all__ = ["ENGINES", "EngineEntry", "engine_class"]


@dataclass(frozen=True)
class EngineEntry:
    """Where an engine is, and what it needs.

    Attributes:
        module, attribute: of the class. The module is imported only if the engine is chosen.
        extra: the extra of fsr-gateway that installs what the engine needs.
        environment: variables that the engine's library reads when it is imported. A variable that is set already
            keeps its value.
    """

    module: str
    attribute: str
    extra: str
    environment: Mapping[str, str] = field(default_factory=dict)


ENGINES: Mapping[EngineName, EngineEntry] = {
    "transformers": EngineEntry("fsr.decoder.engines.transformers.engine", "TransformersEngine", extra="decoder"),
    "vllm": EngineEntry(
        "fsr.decoder.engines.vllm.engine",
        "VllmEngine",
        extra="vllm",
        # No usage reports, and no look at a hub.
        environment={"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
    ),
}


def engine_class(name: EngineName) -> type[Engine]:
    """The class of an engine. Sets the environment that its library reads, then imports it.

    Raises:
        ValueError: something that the engine needs is not installed; the message names the extra to install.
    """
    entry = ENGINES[name]
    for variable, value in entry.environment.items():
        os.environ.setdefault(variable, value)
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        raise ValueError(f"engine: {name} cannot be imported ({error}); install fsr-gateway[{entry.extra}]") from error
    engine: type[Engine] = getattr(module, entry.attribute)
    return engine
