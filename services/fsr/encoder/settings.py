"""Options of the encoder."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from fsr.common.network.ports import is_loopback
from fsr.common.network.tls_options import ReplicaSettings
from fsr.common.requests.names import served_name

__all__ = ["EncoderSettings"]


class EncoderSettings(ReplicaSettings):
    """The encoder: vision tower, projector and compression as a Ray Serve application on Serve's gRPC ingress.

    example: python -m fsr.encoder --model fsr-tiny --port 20051 --max-replicas 4
    """

    model_config = SettingsConfigDict(env_prefix="FSR_ENCODER_", cli_prog_name="python -m fsr.encoder")

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; with one of this machine alone, all of a local Ray listens there alone",
    )
    model: str = Field("fsr-tiny", description="fsr-tiny, a checkpoint folder, or a hub id")
    served_name: str | None = Field(
        None, description="name that callers ask for; default: --model, of a folder its name alone"
    )
    clip: str | None = Field(None, description="CLIP checkpoint for the relevance scores; 'none' leaves them out")
    family_options: dict[str, str] = Field(
        default_factory=dict, description="options of the model's family as JSON: layout, video_newlines, relevance"
    )
    port: int = Field(20051, ge=1, le=65535, description="gRPC port of Serve's proxy")
    ingress: Literal["auto", "direct", "proxy"] = Field(
        "auto",
        description="direct: each replica also has its own port, which gateways learn from the proxy; proxy: Serve's "
        "proxy alone; auto: direct, or proxy in a Ray that others started without it",
    )
    direct_port: int = Field(21000, ge=1024, le=63000, description="first port of replicas with direct ingress")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="port of Ray's metrics; default: a free one")
    device: str = Field("cpu", description="torch device")
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="dtype of the weights")
    threads: int = Field(1, ge=1, description="CPU threads of torch in each replica")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for a replica")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that Ray reserves for a replica")
    min_replicas: int = Field(1, ge=0, description="fewest replicas")
    max_replicas: int = Field(1, ge=1, description="most replicas")
    target_ongoing_requests: float = Field(
        8.0, gt=0, description="requests per replica above which Serve adds a replica"
    )
    max_ongoing_requests: int = Field(32, ge=1, description="requests that one replica works on at the same time")
    max_queued_requests: int = Field(128, ge=1, description="requests that may wait; more are refused")
    max_batch_size: int = Field(16, ge=1, description="most images in one batch of the vision tower")
    batch_wait_seconds: float = Field(
        0.0, ge=0, description="time that an image waits for others while the vision tower is idle"
    )
    cache_mb: float = Field(256.0, ge=0, description="MiB of features that each replica caches for follow-up questions")
    shared_cache: bool = Field(
        True, description="find the features that other replicas have cached, where max_replicas is above 1"
    )
    max_image_pixels: int = Field(40_000_000, ge=1, description="largest picture or frame, width times height")
    max_request_pixels: int = Field(100_000_000, ge=1, description="pixels of all pictures and frames of a request")
    max_request_tokens: int = Field(
        65_536, ge=1, description="most visual tokens, before compression, of all pictures and frames of a request"
    )
    max_comparisons: int | None = Field(
        None,
        ge=1,
        description="most pairs of tokens that the compression of a request may compare (docs/methods.md); default: "
        "67108864 on a CPU, else 536870912",
    )
    max_instruction_chunks: int = Field(
        16, ge=1, description="longest question, in parts of about 70 tokens in which its relevance is read"
    )
    decode_threads: int = Field(
        2, ge=1, description="threads that decode pictures; one more decodes requests of more than 16 megapixels"
    )
    decode_seconds: float = Field(10.0, gt=0, description="most CPU seconds to decode and scale a request's pictures")
    scaled_jpeg: float | None = Field(
        None,
        ge=1,
        le=16,
        description="decode a JPEG at 1/2, 1/4 or 1/8 of its size where that keeps so many times the size that the "
        "model scales pictures to, such as 1 or 2: less CPU, other pixels (docs/performance.md); default: in full",
    )
    ray_address: str | None = Field(None, description="cluster to join, or 'auto'; default: start a local Ray")
    restart: bool = Field(
        True,
        description="start again when a process of a local Ray has ended; else, and when Ray has lived less than a "
        "minute, the encoder ends with status 1, for what supervises it",
    )

    @model_validator(mode="after")
    def _host_is_possible(self) -> Self:
        if self.ray_address is not None and "host" in self.model_fields_set and is_loopback(self.host):
            raise ValueError(
                "host: with ray_address the proxies of that Ray listen on every interface of their nodes; leave it "
                "out, and close the port by a firewall or a NetworkPolicy"
            )
        return self

    @property
    def announced_name(self) -> str:
        """The model's name for callers and in metrics."""
        return self.served_name or served_name(self.model)
