"""The files of a certificate: what is refused, and what happens when they change."""

import ssl

import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from fsr.common.network.certificates import CertificateError, CertificateFiles
from helpers.certificates import Authority

OPTIONS = ("tls_cert", "tls_key", "tls_client_ca")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def files(folder, side="server", cert="tls.crt", key="tls.key", ca="ca.crt"):
    return CertificateFiles(cert=folder / cert, key=folder / key, ca=folder / ca, side=side, options=OPTIONS)


@pytest.mark.parametrize("side", ["server", "client"])
def test_certificate_that_is_right_is_taken(authority, side):
    folder = authority.issue("mine", "gateway.test")
    assert files(folder, side).pems.certificate == (folder / "tls.crt").read_bytes()


@pytest.mark.parametrize("side", ["server", "client"])
def test_certificate_that_has_expired_is_refused(authority, side):
    with pytest.raises(
        CertificateError, match=rf"^tls_cert: .*tls.crt is of no use to a {side} \(certificate has expi"
    ):
        files(authority.issue("old", "gateway.test", expired=True), side)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"key": "missing"}, r"^tls_key: cannot read .*missing \(No such file or directory\); check path"),
        ({"key": "other/tls.key"}, r"^tls_key: .*other/tls.key is not the key of .*tls.crt; give the two"),
        ({"cert": "tls.key"}, "^tls_cert: .* are no certificate and its key in PEM, without a password"),
        ({"cert": "empty"}, "^tls_cert: .* are no certificate and its key in PEM"),
        ({"key": "locked.key"}, "^tls_cert: .* without a password; check the paths"),
        ({"ca": "tls.key"}, "^tls_client_ca: .* holds no certificate in PEM"),
        ({"ca": "empty"}, "^tls_client_ca: .* holds no certificate in PEM"),
        ({"ca": "binary"}, "^tls_client_ca: .* holds no certificate in PEM"),
    ],
)
def test_files_that_cannot_be_used_are_named_in_one_line(authority, tmp_path, wrong, says):
    folder = authority.issue("mine", "gateway.test")
    authority.issue("mine/other", "gateway.test")
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)))
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret"))
    (folder / "locked.key").write_bytes(locked)
    with pytest.raises(CertificateError, match=says) as refused:
        files(folder, **wrong)
    assert "\n" not in str(refused.value)


def test_authority_with_comments_in_other_scripts_is_taken(authority):
    folder = authority.issue("mine", "gateway.test")
    (folder / "ca.crt").write_bytes("# Türktrust\n".encode() + (folder / "ca.crt").read_bytes())
    assert isinstance(files(folder).server_context(), ssl.SSLContext)


def test_refresh_when_the_files_change_tells_so_once(authority):
    mine = files(authority.issue("mine", "gateway.test"))
    before = mine.pems
    assert not mine.refresh()
    authority.issue("mine", "gateway.test")
    assert mine.refresh() and mine.pems != before
    assert not mine.refresh()


def test_refresh_when_a_link_leads_to_another_folder_reads_that(authority, tmp_path):
    """As a mounted Secret of Kubernetes changes."""
    link = tmp_path / "mounted"
    link.symlink_to(authority.issue("one", "gateway.test"))
    mine = files(link)
    link.unlink()
    link.symlink_to(authority.issue("two", "gateway.test"))
    assert mine.refresh() and mine.pems.key == (tmp_path / "two/tls.key").read_bytes()


@pytest.mark.parametrize("fault", ["expired", "half", "gone"])
def test_refresh_when_the_new_files_cannot_be_used_keeps_the_old_ones(authority, fault):
    folder = authority.issue("mine", "gateway.test")
    mine = files(folder)
    before, key = mine.pems, (folder / "tls.key").read_bytes()
    authority.issue("mine", "gateway.test", expired=fault == "expired")
    if fault == "half":
        (folder / "tls.key").write_bytes(key)
    if fault == "gone":
        (folder / "tls.key").unlink()
    with capture_logs() as logs:
        assert not mine.refresh() and not mine.refresh()
    (line,) = logs
    assert line["event"] == "certificate not read again; the old one stays" and "tls_" in line["reason"]
    assert mine.pems == before
    authority.issue("mine", "gateway.test")
    assert mine.refresh()
