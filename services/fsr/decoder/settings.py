"""Options of the decoder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ByteSize, Field
from pydantic_settings import SettingsConfigDict

from fsr.common.network.tls_options import ReplicaSettings
from fsr.common.requests.names import served_name

__all__ = ["DecoderSettings", "EngineName"]

EngineName = Literal["transformers", "vllm"]


class DecoderSettings(ReplicaSettings):
    """A decoder replica: the language model alone. It gets visual tokens that were encoded elsewhere.

    example: python -m fsr.decoder --model fsr-tiny --port 20061
    """

    model_config = SettingsConfigDict(env_prefix="FSR_DECODER_", cli_prog_name="python -m fsr.decoder")

    model: str = Field("fsr-tiny", description="fsr-tiny, a checkpoint folder, or a hub id")
    served_name: str | None = Field(
        None, description="name that callers ask for; default: --model, of a folder its name alone"
    )
    port: int = Field(20061, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    metrics_port: int = Field(9465, ge=0, le=65535, description="port of the Prometheus metrics; 0 picks a free one")
    health_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port for health alone, without TLS, for probes; default: health is on --port only",
    )
    engine: EngineName = Field("transformers", description="what generates the answers; see docs/decoders.md")
    device: str = Field("cpu", description="torch device")
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="dtype of the weights and the KV cache")
    threads: int = Field(1, ge=1, description="CPU threads of torch")
    kv_memory: ByteSize | None = Field(
        None,
        gt=0,
        description="KV memory for all running answers, such as 512MiB; default: 1GiB, on a GPU 80% of what the"
        " weights leave free",
    )
    max_running: int = Field(64, ge=1, description="most answers generated at a time; KV memory may allow fewer")
    max_waiting: int = Field(64, ge=0, description="most requests that wait for KV memory; more are refused at once")
    max_wait_seconds: float = Field(
        30.0, gt=0, description="longest wait for KV memory; after that the request is refused"
    )
    stall_seconds: float = Field(
        60.0,
        gt=0,
        description="longest time in which a caller takes nothing of its answer; then the answer is cut. Leave it well "
        "above the gateway's own, which cuts the callers of the gateway first",
    )
    prefill_tokens: int = Field(
        512, ge=16, description="most prompt tokens prefilled between two tokens of the running answers (transformers)"
    )
    prefix_block: int = Field(
        16, ge=1, description="tokens in a block of cached text; text before the image is cached (transformers)"
    )
    engine_folder: str | None = Field(
        None,
        description="folder that keeps vllm's copy of the language model between starts; default: a temporary folder",
    )
    engine_options: dict[str, Any] = Field(
        {}, description='more arguments for vllm\'s AsyncEngineArgs as JSON, such as {"tensor_parallel_size": 2}'
    )
    default_max_tokens: int = Field(64, ge=1, description="max_tokens of a request that sets none")
    drain_seconds: float = Field(20.0, ge=0, description="time for running answers to end at shutdown")

    @property
    def announced_name(self) -> str:
        """The model's name for callers and in metrics."""
        return self.served_name or served_name(self.model)
