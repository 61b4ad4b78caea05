"""Options of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from fsr.common.settings import ServiceSettings
from fsr.common.transport import MESSAGE_BYTES

__all__ = ["GatewaySettings"]


class GatewaySettings(ServiceSettings):
    """The gateway: validates, admits, routes compressed tokens to decoder replicas, streams answers.

    example: python -m fsr.gateway --encoders 127.0.0.1:50051 --decoders dns:///decoders:50061
    """

    model_config = SettingsConfigDict(env_prefix="FSR_GATEWAY_", cli_prog_name="python -m fsr.gateway")

    port: int = Field(50050, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    metrics_port: int = Field(9464, ge=0, le=65535, description="port of the Prometheus metrics")
    health_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of health alone, never with TLS, for probes; default: --port has it only",
    )
    encoders: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1:50051"],
        description="encoders: host:port or dns:///name:port (every address of it), comma-separated",
    )
    decoders: Annotated[list[str], NoDecode] = Field(
        ["127.0.0.1:50061"],
        description="decoders: host:port or dns:///name:port (every address of it), comma-separated",
    )

    tls_cert: Path | None = Field(None, description="PEM certificate chain of the server; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM key of that certificate")
    tls_client_ca: Path | None = Field(None, description="PEM CA that every client's certificate must come from")
    api_keys: Annotated[list[str], NoDecode] = Field([], description="keys that callers may show, comma-separated")
    api_keys_file: Path | None = Field(
        None,
        description="file with a key a line, after it the models it may ask (none: all); read again when it changes",
    )

    max_requests: int = Field(64, ge=1, description="requests in flight; more are refused")
    default_timeout_seconds: float = Field(120.0, gt=0, description="deadline of a request that brings none")
    max_timeout_seconds: float = Field(1200.0, gt=0, description="longest deadline that a request may bring")
    max_message_bytes: int = Field(MESSAGE_BYTES, ge=1024, le=MESSAGE_BYTES, description="bytes a request")
    max_images: int = Field(16, ge=1, description="images a request, a video counting as one")
    max_frames: int = Field(512, ge=1, description="frames of videos a request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="bytes an image or a frame of a video")
    max_images_bytes: int = Field(48 * 2**20, ge=1, description="bytes of all images and frames of a request")
    max_messages: int = Field(256, ge=1, description="messages of a request's conversation")
    max_parts: int = Field(1024, ge=1, description="texts and images shown in all messages of a request")
    max_text_bytes: int = Field(64 * 2**10, ge=1, description="bytes of text a request")
    wire_dtype: Literal["weights", "fp32", "fp16", "bf16", "int8"] = Field(
        "weights", description="format of features where the request names none; weights: that of the encoder's"
    )

    discovery_seconds: float = Field(2.0, gt=0, description="time between looks at DNS and at each replica")
    probe_timeout_seconds: float = Field(
        2.0, gt=0, description="time a replica has to say how it is, and DNS to answer"
    )
    keepalive_seconds: float = Field(5.0, gt=0, description="silence after which a decoder's connection is pinged")
    stall_seconds: float = Field(10.0, gt=0, description="longest pause between tokens before another replica goes on")
    first_token_seconds: float = Field(60.0, gt=0, description="longest wait for the first token, queueing included")
    encode_seconds: float = Field(30.0, gt=0, description="longest wait for one encoder before another is asked")
    failover_wait_seconds: float = Field(15.0, ge=0, description="time a cut answer waits for a replica to come back")
    max_failovers: int = Field(4, ge=0, description="replicas that may fail one request before it is given up")
    retry_ratio: float = Field(0.2, ge=0, le=1, description="retries that each request adds to the retry budget")
    retry_burst: int = Field(100, ge=0, description="most retries that the budget saves up")
    eject_failures: int = Field(3, ge=1, description="failures in a row that eject a replica")
    eject_seconds: float = Field(1.0, gt=0, description="first ejection; each further one is twice as long")
    eject_max_seconds: float = Field(60.0, gt=0, description="longest ejection")

    canary_share: float = Field(
        0.0, ge=0, le=1, description="share of greedy answers that are asked once more without compression; 0: none"
    )
    canary_max_requests: int = Field(2, ge=0, description="requests at work above which no canary runs, and one stops")
    canary_timeout_seconds: float = Field(30.0, gt=0, description="longest time that a canary takes")

    drain_seconds: float = Field(20.0, ge=0, description="time that running answers get at shutdown")

    @field_validator("encoders", "decoders", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        values = value if isinstance(value, list) else [value]
        return [part.strip() for one in values for part in str(one).split(",") if part.strip()]

    @field_validator("encoders", "decoders")
    @classmethod
    def _addresses(cls, values: list[str]) -> list[str]:
        for value in values:
            host, _, port = value.removeprefix("dns:///").rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{value!r} is no address; write host:port or dns:///name:port")
        return values

    @field_validator("tls_cert", "tls_key", "tls_client_ca", "api_keys_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"no file {value}; check the path")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        return self
