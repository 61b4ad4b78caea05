"""Options of the gateway."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """The gateway: validates, admits, routes compressed tokens to decoder replicas, streams answers.

    example: python -m services.gateway --encoders 127.0.0.1:50051 --decoders 127.0.0.1:50061,127.0.0.1:50062
    """

    model_config = SettingsConfigDict(env_prefix="FSR_GATEWAY_")

    port: int = Field(50050, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    metrics_port: int = Field(9464, ge=0, le=65535, description="port of the Prometheus metrics")
    encoders: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1:50051"], description="addresses of encoders, comma-separated"
    )
    decoders: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1:50061"], description="addresses of decoder replicas, comma-separated"
    )
    max_requests: int = Field(64, ge=1, description="requests in flight; more are refused")
    default_timeout_seconds: float = Field(120.0, gt=0, description="deadline of a request that brings none")
    discovery_seconds: float = Field(2.0, gt=0, description="time between looks at each replica")
    max_images: int = Field(16, ge=1, description="images a request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="bytes an image")
    max_text_bytes: int = Field(64 * 2**10, ge=1, description="bytes of text a request")
    max_failovers: int = Field(2, ge=0, description="replicas that may die in one answer before it is given up")
    drain_seconds: float = Field(20.0, ge=0, description="time that running answers get at shutdown")

    @field_validator("encoders", "decoders", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        values = value if isinstance(value, list) else [value]
        return [part.strip() for one in values for part in str(one).split(",") if part.strip()]
