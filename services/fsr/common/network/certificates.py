"""The certificate of a service, and gRPC's credentials made of it. Its files are read again when they change.

Certificates are renewed while services run, as by cert-manager: open connections stay as they are, and new ones use
what the files hold now. A new version that cannot be used changes nothing.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import structlog

__all__ = ["CertificateError", "CertificateFiles", "Pems", "channel_credentials", "server_credentials"]

log = structlog.get_logger()
Side = Literal["server", "client"]


class CertificateError(ValueError):
    """The files cannot be used. The message names the option and the remedy."""


@dataclass(frozen=True)
class Pems:
    """The contents of the files: a private key, its certificate with those between it and its authority, and the
    authority that must have signed the other side's certificate, None where the other side needs none."""

    key: bytes
    certificate: bytes
    ca: bytes | None


class CertificateFiles:
    """The certificate of one side of connections. `pems` is what the files held when they were last usable."""

    def __init__(self, *, cert: Path, key: Path, ca: Path | None, side: Side, options: tuple[str, str, str]) -> None:
        """`options` are the names of those that give `cert`, `key` and `ca`. Raises CertificateError."""
        self._cert, self._key, self._ca = cert, key, ca
        self._side, self._options, self._problem = side, options, ""
        self.pems = self._checked(self._read())

    def refresh(self) -> bool:
        """Reads the files again; returns whether they hold something new that can be used. What cannot be used is
        logged once, and `pems` stays."""
        try:
            pems = self._read()
            if pems == self.pems:
                return False
            self.pems, self._problem = self._checked(pems), ""
        except CertificateError as error:
            if str(error) != self._problem:
                log.error("certificate not read again; the old one stays", reason=str(error))
            self._problem = str(error)
            return False
        log.info("certificate read again", file=str(self._cert))
        return True

    def server_context(self) -> ssl.SSLContext:
        """For a server that is not gRPC's. With a `ca` it takes only clients that have a certificate of it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._cert, self._key)
        if self.pems.ca is not None:
            context.load_verify_locations(cadata=self.pems.ca.decode("ascii", "ignore"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _read(self) -> Pems:
        paths = (self._cert, self._key, self._ca)
        contents = [_content(path, option) for path, option in zip(paths, self._options, strict=True)]
        return Pems(key=contents[1] or b"", certificate=contents[0] or b"", ca=contents[2])

    def _checked(self, pems: Pems) -> Pems:
        """`pems`. Raises CertificateError unless the other side of a connection could accept them now."""
        cert_option, key_option, ca_option = self._options
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            for context in (server, client):
                context.load_cert_chain(self._cert, self._key, password="")  # else OpenSSL asks the terminal for one
        except OSError as error:  # that of ssl is one too
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
                reason = f"{self._key} is not the key of {self._cert}; give the two that belong together"
                raise CertificateError(f"{key_option}: {reason}") from error
            reason = f"{self._cert} and {self._key} are no certificate and its key in PEM, without a password"
            raise CertificateError(f"{cert_option}: {reason}; check the paths") from error
        try:
            if pems.ca is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pems.ca.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            raise CertificateError(f"{ca_option}: {self._ca} holds no certificate in PEM; check the path") from error
        try:
            _shake_hands(server, client, self._side, pems.certificate.decode("ascii", "ignore"))
        except ssl.SSLCertVerificationError as error:
            reason = f"{self._cert} is of no use to a {self._side} ({error.verify_message})"
            raise CertificateError(f"{cert_option}: {reason}; have it issued anew") from error
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            raise CertificateError(f"{cert_option}: {self._cert} cannot be used ({reason}); check it") from error
        if self._read() != pems:
            raise CertificateError(f"{cert_option}: the files change just now; they are read again")
        return pems


def _content(path: Path | None, option: str) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"{option}: cannot read {path} ({error.strerror}); check path and permissions"
        ) from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, shown_by: Side, certificate: str) -> None:
    """A connection in memory, whose other side trusts just this certificate. Raises ssl.SSLError.

    Python has no other public way to tell whether a certificate has expired, or is for the other side of connections.
    """
    verifier, other = (client, server) if shown_by == "server" else (server, client)
    client.check_hostname = False
    verifier.verify_mode, other.verify_mode = ssl.CERT_REQUIRED, ssl.CERT_NONE
    verifier.load_verify_locations(cadata=certificate)
    verifier.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusts it though it has not signed itself
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for side in 2 * sides:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Of a server. It looks at the files at each new connection. With a `ca` it takes only clients that have a
    certificate of it."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        pems = files.pems
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.ca)

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        # None: as before, which grpc takes and its types do not know.
        lambda: configuration() if files.refresh() else None,  # type: ignore[arg-type, return-value]
        require_client_authentication=files.pems.ca is not None,
    )


def channel_credentials(pems: Pems) -> grpc.ChannelCredentials:
    """Of a channel, for as long as it lives: gRPC has no way to give it another certificate."""
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.certificate)
