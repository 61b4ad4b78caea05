"""The encoder's methods for Ray Serve's gRPC ingress, which hands their messages on as they came.

A replica parses them. The ingress would end unreadable ones as UNKNOWN, with internals in the details and in no log of
ours, and it would parse every message once more.
"""

from __future__ import annotations

from typing import Any

import grpc

from fsr.v1 import encoder_pb2

__all__ = ["SERVICER_FUNCTION", "add_encoder_service"]

SERVICER_FUNCTION = f"{__name__}.add_encoder_service"
"""What `grpc_servicer_functions` of a Serve configuration names."""

_SERVICE = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]


def add_encoder_service(servicer: Any, server: Any) -> None:
    """As the generated `add_EncoderServiceServicer_to_server`, but requests and responses stay bytes."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(getattr(servicer, method.name)) for method in _SERVICE.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(_SERVICE.full_name, handlers)
