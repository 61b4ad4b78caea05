"""Options of a service, declared once and read from flags, environment and a YAML file.

Flags win over the environment, and the environment over the file that `--config` (or FSR_<SERVICE>_CONFIG) names. An
unknown name in any of the three is an error.
"""

from __future__ import annotations

import os
import re
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from fsr.common.network.addresses import bare_host
from fsr.common.telemetry.tracing import check_collector

__all__ = ["ReadableFile", "ServiceSettings"]

_config_file: ContextVar[str | None] = ContextVar("config_file", default=None)
# Variables that Kubernetes sets in every pod for a service of the same name.
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT.*|PORT_\d+_(TCP|UDP).*)$")
_ENCODING = "utf-8-sig"  # some editors begin a file with a byte order mark
_UNKNOWN = "is no option of this service; check the spelling"


def _readable(value: Path) -> Path:
    if not value.is_file():
        raise ValueError(f"no file {value}; check the path")
    return value


ReadableFile = Annotated[Path, AfterValidator(_readable)]


class ServiceSettings(BaseSettings):
    """Options that every service has."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        use_attribute_docstrings=True,
    )

    config: str | None = Field(None, description="YAML file with these options")
    host: str = Field("127.0.0.1", description="address to listen on, such as 0.0.0.0, ::1 or :: (all interfaces)")
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="least severe log lines that are written"
    )
    otlp_endpoint: str | None = Field(
        None,
        description="collector that gets traces by OTLP over gRPC, such as http://collector:4317; default: that of "
        "OTEL_EXPORTER_OTLP_ENDPOINT, else no traces",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_text(cls, value: object) -> object:
        """Python takes bytes of the command line that are no text, as in the name of a folder, for lone surrogates."""
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{value!a} is no UTF-8; rename what it names, or write it in UTF-8") from error
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_collector(cls, value: str | None) -> str | None:
        return check_collector(value) if value else None

    @field_validator("host")
    @classmethod
    def _plain_host(cls, value: str) -> str:
        return bare_host(value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, _config_file.get(), _ENCODING))

    @classmethod
    def load(cls, arguments: list[str] | None = None) -> Self:
        """Reads all sources. Exits with one line for each wrong option."""
        arguments = sys.argv[1:] if arguments is None else arguments
        problems = cls._unknown_environment()
        try:
            _config_file.set(cls._config_path(arguments))
            if not problems:
                return CliApp.run(cls, cli_args=arguments)
        except ValidationError as error:
            problems = [cls._line(tuple(e["loc"]), e["msg"], e["type"]) for e in error.errors()]
        except (SettingsError, _BadConfig) as error:
            problems = [str(error).removeprefix("error parsing CLI: ")]
        raise SystemExit("error: " + "\nerror: ".join(problems) + "\nsee --help for every option")

    @classmethod
    def _line(cls, location: tuple[int | str, ...], message: str, kind: str) -> str:
        name = ".".join(str(part) for part in location[:1]).replace("_", "-")
        message = message.removeprefix("Value error, ")
        if kind == "extra_forbidden":
            message = _UNKNOWN
        if "tcp://" in os.environ.get(f"{cls.model_config.get('env_prefix')}{name.upper()}", ""):
            message += " (Kubernetes sets this variable for a service of the same name: set enableServiceLinks: false)"
        return f"--{name}: {message}" if name else message

    @classmethod
    def _unknown_environment(cls) -> list[str]:
        prefix = str(cls.model_config.get("env_prefix"))
        known = {prefix + name.upper() for name in cls.model_fields}
        unknown = [name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known]
        return [
            f"{name}: {_UNKNOWN}"
            for name in sorted(unknown)
            if not _SERVICE_LINK.match(name.upper().removeprefix(prefix))
        ]

    @classmethod
    def _config_path(cls, arguments: list[str]) -> str | None:
        """The path of the YAML file, or None. Raises _BadConfig if the file is missing or holds no mapping."""
        name = f"{cls.model_config.get('env_prefix')}CONFIG"
        path = os.environ.get(name)
        for i, argument in enumerate(arguments):
            if argument == "--config" and i + 1 < len(arguments):
                name, path = "--config", arguments[i + 1]
            elif argument.startswith("--config="):
                name, path = "--config", argument.partition("=")[2]
        if not path:
            return None
        try:
            with open(path, encoding=_ENCODING) as file:
                content = yaml.safe_load(file)
        except OSError as error:
            raise _BadConfig(f"{name}: cannot read {path} ({error.strerror}); check the path") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise _BadConfig(f"{name}: {path} is no YAML ({reason}); write one 'option: value' a line") from error
        if content is not None and not isinstance(content, dict):
            raise _BadConfig(f"{name}: {path} holds no options; write one 'option: value' a line")
        return path


class _BadConfig(Exception):
    """The file cannot be used, for the reason in the message."""
