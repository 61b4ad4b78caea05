"""What happened to one request on its way: the replicas that were asked, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Trail"]


@dataclass
class Trail:
    """Goes out as trailing metadata, of failures too."""

    request_id: str
    encoders: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    failovers: int = 0
    retries: int = 0

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (
            ("fsr-request-id", self.request_id),
            ("fsr-encoders", ",".join(self.encoders)),
            ("fsr-decoders", ",".join(self.decoders)),
        )
