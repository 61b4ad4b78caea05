"""What happened to one request: the replicas that were called, in order, and its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from fsr.common.wire.transport import DECODERS, ENCODERS, REQUEST_ID

__all__ = ["RequestRecord"]

_MOST_ADDRESSES = 16  # of each role in trailing metadata, the last ones: a cut answer may try full replicas for minutes


@dataclass(kw_only=True)
class RequestRecord:
    """It goes into the log. A caller by gRPC gets its id as trailing metadata, after a failure too, and the addresses
    of the replicas if it asks for them.

    Budget and method are those that were applied, "request" or "policy" who chose them. All four are empty for a
    request without images, or before they are known.
    """

    request_id: str
    model: str = ""  # the one that was chosen; empty before
    key_name: str = ""
    wait_seconds: float = 0.0  # for a slot of the gateway
    encoders: list[str] = field(default_factory=list)
    decoders: list[str] = field(default_factory=list)
    failovers: int = 0
    retries: int = 0
    budget: str = ""
    budget_chosen_by: str = ""
    method: str = ""
    method_chosen_by: str = ""
    visual_tokens_in: int = 0
    visual_tokens_kept: int = 0
    completion_tokens: int = 0

    def log_fields(self) -> dict[str, object]:
        """All but the request's id, which is bound to its log lines already."""
        return {name: value for name, value in vars(self).items() if name != "request_id"}

    def metadata(self, replicas: bool) -> tuple[tuple[str, str], ...]:
        """With `replicas`, also their addresses."""
        if not replicas:
            return ((REQUEST_ID, self.request_id),)
        return (
            (REQUEST_ID, self.request_id),
            (ENCODERS, ",".join(self.encoders[-_MOST_ADDRESSES:])),
            (DECODERS, ",".join(self.decoders[-_MOST_ADDRESSES:])),
        )
