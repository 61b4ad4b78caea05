"""The gateway's options of TLS: towards its callers, and towards encoders and decoders."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from fsr.common.network.certificates import CertificateFiles
from fsr.common.network.tls_options import server_certificate
from fsr.common.process.settings import ReadableFile, ServiceSettings

__all__ = ["TlsSettings"]

_REPLICA_TLS = ("replica_tls_cert", "replica_tls_key", "replica_tls_ca")


class TlsSettings(ServiceSettings):
    """Certificates, which are read again when their files change."""

    tls_cert: ReadableFile | None = Field(
        None, description="PEM certificate chain for callers; turns TLS on; read again on change, as all certificates"
    )
    tls_key: ReadableFile | None = Field(None, description="PEM private key of that certificate")
    tls_client_ca: ReadableFile | None = Field(
        None, description="PEM CA; every client must show a certificate that it signed"
    )
    replica_tls_cert: ReadableFile | None = Field(
        None, description="PEM certificate chain that encoders and decoders are shown; turns mTLS to them on"
    )
    replica_tls_key: ReadableFile | None = Field(None, description="PEM private key of that certificate")
    replica_tls_ca: ReadableFile | None = Field(
        None, description="PEM CA; every encoder and decoder must have a certificate that it signed"
    )
    encoder_tls_name: str | None = Field(
        None, min_length=1, description="name in the certificates of encoders; default: the host in --encoders"
    )
    decoder_tls_name: str | None = Field(
        None, min_length=1, description="name in the certificates of decoders; default: the host in --decoders"
    )
    insecure: bool = Field(
        False, description="no warning that API keys come in plain text from other machines, as on a trusted network"
    )

    @model_validator(mode="after")
    def _tls_is_possible(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        given = [name for name in _REPLICA_TLS if getattr(self, name) is not None]
        if given and len(given) < len(_REPLICA_TLS):
            raise ValueError(f"{', '.join(_REPLICA_TLS)}: give all three, or none; each alone locks nothing")
        if not given and (self.encoder_tls_name or self.decoder_tls_name):
            name = "encoder_tls_name" if self.encoder_tls_name else "decoder_tls_name"
            raise ValueError(f"{name}: needs {', '.join(_REPLICA_TLS)}")
        self.certificate()
        self.replica_certificate()
        return self

    def certificate(self) -> CertificateFiles | None:
        """The certificate for callers, None without TLS. Raises CertificateError."""
        return server_certificate(self.tls_cert, self.tls_key, self.tls_client_ca)

    def replica_certificate(self) -> CertificateFiles | None:
        """The certificate for encoders and decoders, None without mTLS to them. Raises CertificateError."""
        if self.replica_tls_cert is None or self.replica_tls_key is None:
            return None
        return CertificateFiles(
            cert=self.replica_tls_cert,
            key=self.replica_tls_key,
            ca=self.replica_tls_ca,
            side="client",
            options=_REPLICA_TLS,
        )
