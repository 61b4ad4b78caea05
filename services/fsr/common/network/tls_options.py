"""Options of mTLS that the services have that gateways call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from fsr.common.network.certificates import CertificateFiles
from fsr.common.process.settings import ReadableFile, ServiceSettings

__all__ = ["SERVER_TLS", "ReplicaSettings", "server_certificate"]

SERVER_TLS = ("tls_cert", "tls_key", "tls_client_ca")
_File = Annotated[ReadableFile, AfterValidator(Path.absolute)]  # Ray's processes work in other folders


def server_certificate(cert: Path | None, key: Path | None, ca: Path | None) -> CertificateFiles | None:
    """What a service shows those that call it; None without a certificate or a key. Raises CertificateError."""
    if cert is None or key is None:
        return None
    return CertificateFiles(cert=cert, key=key, ca=ca, side="server", options=SERVER_TLS)


class ReplicaSettings(ServiceSettings):
    """Options of a service that gateways call. It asks for no key, so the certificate of its caller is what counts."""

    tls_cert: _File | None = Field(
        None, description="PEM certificate chain for gateways; turns mTLS on; the three files are read again on change"
    )
    tls_key: _File | None = Field(None, description="PEM private key of that certificate")
    tls_client_ca: _File | None = Field(
        None, description="PEM CA; every gateway must show a certificate that it signed"
    )

    @model_validator(mode="after")
    def _tls_is_possible(self) -> Self:
        given = [name for name in SERVER_TLS if getattr(self, name) is not None]
        if given and len(given) < len(SERVER_TLS):
            raise ValueError("tls_cert, tls_key, tls_client_ca: give all three, or none; each alone locks nothing")
        self.certificate()
        return self

    def certificate(self) -> CertificateFiles | None:
        """The certificate for gateways, None without mTLS. Raises CertificateError."""
        return server_certificate(self.tls_cert, self.tls_key, self.tls_client_ca)
