"""TLS of the HTTP interface, with the certificate of the gateway's gRPC port."""

from __future__ import annotations

import ssl

from fsr.common.network.certificates import CertificateFiles

__all__ = ["https_context"]


def https_context(files: CertificateFiles) -> ssl.SSLContext:
    """A context that looks at the files at each new connection, and takes what they hold now."""
    current = files.server_context()

    def renew(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        nonlocal current
        if files.refresh():
            current = files.server_context()
        connection.context = current

    context = files.server_context()
    context.sni_callback = renew  # called for clients that name no server too
    return context
