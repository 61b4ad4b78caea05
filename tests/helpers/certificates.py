"""Certificates for tests, in files with the names that cert-manager gives them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

LONG_AGO = datetime.now(UTC) - timedelta(days=400)


class Authority:
    """Issues certificates into folders of `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ca = folder, trustme.CA()

    def issue(self, folder: str, *names: str, expired: bool = False, trusts: "Authority | None" = None) -> Path:
        """A folder with tls.crt, tls.key and ca.crt, the authority to trust: this one unless it `trusts` another. What
        the folder held before is replaced."""
        validity = {"not_before": LONG_AGO, "not_after": LONG_AGO + timedelta(days=1)} if expired else {}
        issued = self._ca.issue_cert(*names, **validity)
        target = self._folder / folder
        target.mkdir(exist_ok=True)
        (target / "tls.crt").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(target / "tls.key")
        (trusts or self)._ca.cert_pem.write_to_path(target / "ca.crt")
        return target


def options(folder: Path, cert: str = "tls_cert", key: str = "tls_key", ca: str = "tls_client_ca") -> dict[str, Path]:
    """Settings that name the files of a folder."""
    return {cert: folder / "tls.crt", key: folder / "tls.key", ca: folder / "ca.crt"}


def gateway_options(folder: Path) -> dict[str, Path]:
    return options(folder, "replica_tls_cert", "replica_tls_key", "replica_tls_ca")


def flags(options: dict[str, Path]) -> list[str]:
    """The same on a command line."""
    return [part for name, path in options.items() for part in (f"--{name.replace('_', '-')}", str(path))]
