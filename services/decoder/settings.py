"""Options of the decoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import ServiceSettings


class DecoderSettings(ServiceSettings):
    """A decoder replica: the language model alone, fed with visual tokens that were encoded elsewhere.

    example: python -m services.decoder --model fsr-tiny --port 50061
    """

    model_config = SettingsConfigDict(env_prefix="FSR_DECODER_")

    model: str = Field("fsr-tiny", description="fsr-tiny, a checkpoint folder, or a hub id")
    served_name: str | None = Field(None, description="name that callers ask for; default: --model")
    port: int = Field(50061, ge=0, le=65535, description="gRPC port; 0 picks a free one")
    device: str = Field("cpu", description="torch device")
    dtype: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="dtype of weights and KV cache")
    threads: int = Field(1, ge=1, description="CPU threads of torch")
    max_running: int = Field(8, ge=1, description="answers generated at a time")
    max_waiting: int = Field(64, ge=0, description="requests that may wait for a slot; more are refused")
    default_max_tokens: int = Field(64, ge=1, description="answer length where the request names none")
    drain_seconds: float = Field(20.0, ge=0, description="time that running answers get at shutdown")
