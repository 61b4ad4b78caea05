"""Options of a service, declared once and read from flags, environment and a YAML file alike.

Flags win over the environment, which wins over the file that `--config` (or FSR_<SERVICE>_CONFIG) names.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

__all__ = ["ServiceSettings"]


class ServiceSettings(BaseSettings):
    """What every service has."""

    model_config = SettingsConfigDict(
        extra="forbid",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
    )

    config: str | None = Field(None, description="YAML file with these options")
    host: str = Field("127.0.0.1", description="address to listen on")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="least severe log line shown")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = _config_path(str(settings_cls.model_config.get("env_prefix")))
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, path))

    @classmethod
    def load(cls, arguments: list[str] | None = None) -> Self:
        """Reads all sources; exits with one line for each option that is wrong."""
        try:
            return CliApp.run(cls, cli_args=sys.argv[1:] if arguments is None else arguments)
        except ValidationError as error:
            lines = [f"--{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}" for e in error.errors()]
            raise SystemExit("error: " + "\nerror: ".join([*lines, "see --help"])) from error


def _config_path(env_prefix: str) -> str | None:
    arguments: list[Any] = sys.argv[1:]
    for at, argument in enumerate(arguments):
        if argument == "--config" and at + 1 < len(arguments):
            return str(arguments[at + 1])
        if str(argument).startswith("--config="):
            return str(argument).partition("=")[2]
    path = os.environ.get(f"{env_prefix}CONFIG")
    if path and not os.path.isfile(path):
        raise SystemExit(f"error: {env_prefix}CONFIG: no file {path}")
    return path
