"""Options of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from fsr.common.process.settings import ReadableFile
from fsr.common.requests.method_options import DEFAULT_METHOD
from fsr.common.wire.transport import MAX_STREAMS, MESSAGE_BYTES
from fsr.gateway.options.option_types import Addresses, Hosts, Networks, Origins, Texts, WebAddress
from fsr.gateway.options.policy import BudgetText, MethodOptions, Policy, TokenCount, check_method_options
from fsr.gateway.options.tls_options import TlsSettings

__all__ = ["GatewaySettings"]


class GatewaySettings(TlsSettings):
    """The gateway: validates, admits, routes compressed tokens to decoder replicas, streams answers.

    example: python -m fsr.gateway --encoders 127.0.0.1:20051 --decoders dns:///decoders:20061
    """

    model_config = SettingsConfigDict(env_prefix="FSR_GATEWAY_", cli_prog_name="python -m fsr.gateway")

    port: int = Field(20050, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    http_port: int | None = Field(
        None, ge=0, le=65535, description="port of the HTTP interface (OpenAI's API); 0 picks a free one; default: off"
    )
    http_max_body_bytes: int | None = Field(
        None,
        ge=1024,
        description="most bytes of an HTTP request; default: 64 KiB and four thirds of --max-message-bytes (base64)",
    )
    http_max_bodies_bytes: int = Field(
        256 * 2**20,
        ge=1024,
        description="most bytes of all HTTP requests that arrive or wait for a slot, at least those of one; the one "
        "that has been arriving for the longest time makes room for others",
    )
    http_body_seconds: float = Field(60.0, gt=0, description="longest time that an HTTP request takes to arrive")
    http_cors_origins: Origins = Field(
        [],
        description="origins whose web pages may call the HTTP interface, comma-separated: https://app.example; "
        "default: none",
    )
    http_page: bool = Field(True, description="whether the HTTP port has a page at / to try the gateway in a browser")
    grafana_url: WebAddress | None = Field(
        None, description="address of Grafana, for a link on the page; default: no link"
    )
    metrics_port: int = Field(9464, ge=0, le=65535, description="port of the Prometheus metrics")
    health_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port for health alone, without TLS, for probes; default: health is on --port only",
    )
    encoders: Addresses = Field(
        ["127.0.0.1:20051"],
        description="encoders, comma-separated: host:port, or dns:///name:port for all addresses of a name",
    )
    decoders: Addresses = Field(
        ["127.0.0.1:20061"],
        description="decoders, comma-separated: host:port, or dns:///name:port for all addresses of a name",
    )

    api_keys: Texts = Field(
        [], description="API keys of callers, comma-separated; without any key or file, no key is asked for"
    )
    api_keys_file: ReadableFile | None = Field(
        None,
        description="file of API keys, read again when it changes: YAML or TOML with policies (docs/policies.md), or "
        "one key a line, or sha256: and its hash, and the models that it may use",
    )

    default_budget: BudgetText = Field(
        "auto",
        description="budget of a request that sets none: visual tokens of each image (64), a share of them (0.11), "
        "auto, or auto within bounds (auto:16..128)",
    )
    default_method: str = Field(
        DEFAULT_METHOD, min_length=1, description="compression method of a request that names none"
    )
    default_options: MethodOptions = Field(
        {}, description='options of the default method as JSON, such as {"rho": 0.7}; a request may set others'
    )
    min_tokens: TokenCount = Field(
        0, description="fewest visual tokens of an image that a budget may ask for; 0: no limit"
    )
    max_tokens: TokenCount = Field(
        0,
        description="most visual tokens of an image that a budget may ask for; 0: no limit. The length of answers is a "
        "request's own max_tokens",
    )

    max_requests: int = Field(64, ge=1, description="most requests in flight; further ones wait")
    max_requests_per_key: int | None = Field(
        None,
        ge=1,
        description="most requests in flight of one API key, unless the file of keys says another number; default: "
        "seven eighths of --max-requests",
    )
    max_requests_per_connection: int | None = Field(
        None, ge=1, description="most requests in flight of one connection; default: seven eighths of --max-requests"
    )
    max_waiting: int = Field(64, ge=0, description="most requests that wait; further ones are refused")
    max_wait_seconds: float = Field(5.0, ge=0, description="longest wait; after that the request is refused")
    default_timeout_seconds: float = Field(120.0, gt=0, description="deadline of a request that has none")
    max_timeout_seconds: float = Field(1200.0, gt=0, description="longest deadline that a request may have")
    max_message_bytes: int = Field(MESSAGE_BYTES, ge=1024, le=MESSAGE_BYTES, description="most bytes of a request")
    message_seconds: float = Field(60.0, gt=0, description="longest time that a gRPC request takes to arrive")
    max_streams: int = Field(
        MAX_STREAMS, ge=1, description="most gRPC calls at a time on one connection; further ones wait in the client"
    )
    max_images: int = Field(16, ge=1, description="most images of a request; a video counts as one")
    max_frames: int = Field(512, ge=1, description="most frames of all videos of a request")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="most bytes of an image, or of a frame of a video")
    max_images_bytes: int = Field(48 * 2**20, ge=1, description="most bytes of all images and frames of a request")
    max_messages: int = Field(256, ge=1, description="most messages of a request's conversation")
    max_parts: int = Field(1024, ge=1, description="most texts and images shown in all messages of a request")
    max_text_bytes: int = Field(64 * 2**10, ge=1, description="most bytes of text of a request")
    wire_dtype: Literal["weights", "fp32", "fp16", "bf16", "int8"] = Field(
        "weights",
        description="format of features if the request names none; weights: the format of the encoder's weights",
    )

    http_image_hosts: Hosts = Field(
        [],
        description="hosts that pictures may be fetched from by URL, comma-separated: host, host:port, *.domain, or * "
        "for all; default: none",
    )
    http_image_networks: Networks = Field(
        [],
        description="networks that are not public and that those hosts may be in if named in full, comma-separated, "
        "such as 10.1.0.0/16",
    )
    http_image_seconds: float = Field(
        10.0, gt=0, description="longest time to fetch all pictures that a request gives by URL"
    )

    discovery_seconds: float = Field(2.0, gt=0, description="time between two looks at DNS and at every replica")
    probe_timeout_seconds: float = Field(
        2.0, gt=0, description="time that a replica has to answer a probe, and DNS a lookup"
    )
    keepalive_seconds: float = Field(5.0, gt=0, description="silence after which the connection to a decoder is pinged")
    stall_seconds: float = Field(
        10.0,
        gt=0,
        description="longest pause between tokens; then another replica goes on. Also the longest time in which a "
        "caller takes nothing of its answer; then the answer is cut",
    )
    first_token_seconds: float = Field(
        60.0,
        gt=0,
        description="longest time in which a decoder says nothing before the first token, time in queues included; "
        "then another replica is asked. A transformers decoder says that it is at work on a prompt; vLLM does not",
    )
    encode_seconds: float = Field(
        30.0,
        gt=0,
        description="seconds that an encoder may take for a request; if it does not answer then, another one is asked",
    )
    failover_wait_seconds: float = Field(
        30.0,
        ge=0,
        description="time that a cut answer waits for a replica to come back, and a new request for one that was lost "
        "so long ago at the most",
    )
    max_failovers: int = Field(
        4,
        ge=0,
        description="most replica failures of one request in a row, without a token of a decode step between; after "
        "more, the request fails",
    )
    retry_ratio: float = Field(0.2, ge=0, le=1, description="retries that each request adds to the retry budget")
    retry_burst: int = Field(100, ge=0, description="most retries that the retry budget holds")
    eject_failures: int = Field(
        3,
        ge=1,
        description="failures in a row that open a replica's circuit breaker: it gets no requests (Envoy: ejection)",
    )
    eject_seconds: float = Field(
        1.0, gt=0, description="first time that a breaker stays open; each further time is twice as long"
    )
    eject_max_seconds: float = Field(60.0, gt=0, description="longest time that a breaker stays open")

    canary_share: float = Field(
        0.0, ge=0, le=1, description="share of greedy answers that are computed once more without compression; 0: none"
    )
    canary_max_requests: int = Field(
        2, ge=0, description="with more requests than this at work, no canary starts, and a running one stops"
    )
    canary_timeout_seconds: float = Field(30.0, gt=0, description="longest time that a canary may take")
    canary_export: Path | None = Field(
        None,
        description="folder for pictures and questions whose answers the canary found changed, for fsr calibrate; it "
        "then holds callers' data (docs/security.md); default: none are written",
    )
    canary_export_all: bool = Field(
        False, description="whether questions whose answers did not change are written too, as a sample of all"
    )
    canary_export_bytes: int = Field(
        256 * 2**20, ge=1024, description="most bytes of that folder; when they are reached, no more is written"
    )

    drain_seconds: float = Field(20.0, ge=0, description="time that running answers have at shutdown")

    _check_options = field_validator("default_options")(check_method_options)

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.http_image_networks and not self.http_image_hosts:
            raise ValueError("http_image_networks: needs http_image_hosts, the hosts in them")
        return self

    @model_validator(mode="after")
    def _export_has_a_canary(self) -> Self:
        if self.canary_export is not None and not self.canary_share:
            raise ValueError("canary_export: needs canary_share, the share of answers that the canary looks at")
        if self.canary_export_all and self.canary_export is None:
            raise ValueError("canary_export_all: needs canary_export, the folder")
        return self

    @model_validator(mode="after")
    def _policy_is_possible(self) -> Self:
        self.policy.check()
        return self

    @property
    def most_requests_of_a_key(self) -> int:
        """Where a key's entry does not say another number."""
        return self.max_requests_per_key or max(1, self.max_requests * 7 // 8)

    @property
    def most_requests_of_a_connection(self) -> int:
        return self.max_requests_per_connection or max(1, self.max_requests * 7 // 8)

    @property
    def policy(self) -> Policy:
        """What applies to requests unless the file of keys says something else of their key or model."""
        return Policy(**{name: getattr(self, name) for name in Policy.model_fields})
