"""What happened to one request on its way: the replicas that were asked, in order, and its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Trail"]


@dataclass
class Trail:
    """Goes out as trailing metadata, of failures too, and into the log."""

    request_id: str
    encoders: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    failovers: int = 0
    retries: int = 0
    visual_tokens_in: int = 0
    visual_tokens_kept: int = 0
    completion_tokens: int = 0

    def facts(self) -> dict[str, object]:
        """For the log; a request's id is bound to its lines already."""
        return {name: value for name, value in vars(self).items() if name != "request_id"}

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (
            ("fsr-request-id", self.request_id),
            ("fsr-encoders", ",".join(self.encoders)),
            ("fsr-decoders", ",".join(self.decoders)),
        )
