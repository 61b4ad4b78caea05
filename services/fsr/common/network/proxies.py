"""Which connections may go through an HTTP proxy that the environment names.

gRPC reads `grpc_proxy`, `https_proxy` and `http_proxy`, and uses them for every host that `no_grpc_proxy` or `no_proxy`
does not name, this machine too: https://github.com/grpc/grpc/blob/master/doc/environment_variables.md
"""

from __future__ import annotations

from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # the stubs lack it

from fsr.common.network.addresses import is_this_machine

__all__ = ["may_use_proxy"]


def may_use_proxy(host: str) -> bool:
    """Whether a connection to a host, without brackets, may go through a proxy; an empty one is this machine.

    It may not if the host is this machine, or if `no_proxy` or `NO_PROXY` names it, its domain, or `*`. Networks in
    `no_proxy`, such as 10.0.0.0/8, are left to gRPC.
    """
    return bool(host) and not is_this_machine(host) and not proxy_bypass_environment(host)
