"""Pictures that the client fetches, from a real server on loopback."""

import contextlib
import http.server
import ssl
import threading
import time

import pytest
import trustme

from fsr.client import DeadlineExceeded, InvalidRequestError
from fsr.client.media import image_messages, read_picture

PICTURE = b"\x89PNG the file of a picture"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Host")))
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = int(path[1:]) if path[1:].isdigit() else 200
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if path == "/page" else "image/png")
        self.send_header("Content-Length", str(len(PICTURE) + 9 * (path == "/cut")))
        self.end_headers()
        if path == "/slow":
            with contextlib.suppress(OSError):
                while not self.server.ended.wait(0.05):
                    self.wfile.write(b"x")
        else:
            self.wfile.write(PICTURE)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.ended = [], threading.Event()
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def https(authority, monkeypatch, tmp_path):
    """A server with a certificate that the environment trusts, and its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with serving(context) as server:
        yield server, f"https://localhost:{server.server_port}"


@pytest.fixture
def http_server():
    with serving() as server:
        yield server, f"http://127.0.0.1:{server.server_port}"


def test_picture_at_an_https_url_is_fetched(https):
    server, address = https
    assert [image.data for image in image_messages([f"{address}/scene.png", b"x"])] == [PICTURE, b"x"]
    assert read_picture(f"{address}/to//scene.png") == PICTURE
    assert read_picture(f"{address.replace('https', 'HTTPS')}/möd 1.png?a=ü&b=%20#top") == PICTURE
    assert server.asked[-1][0] == "/m%C3%B6d%201.png?a=%C3%BC&b=%20"


def test_untrusted_certificate_is_refused(https, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(
        InvalidRequestError, match=r"^image: cannot fetch https://localhost:.* CERTIFICATE_VERIFY_FAILED"
    ):
        read_picture(f"{https[1]}/scene.png")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/404", r"cannot fetch http://127.0.0.1:\d+/404 \(404 Not Found\); check the URL, or pass the file's bytes"),
        ("/page", "is text/html and no picture; use the URL of the file itself"),
        ("/cut", r"\(the last 9 bytes are missing\)"),
        ("/to/ftp://127.0.0.1/x", r"\(it redirects to ftp\)"),
        ("/to/file:///etc/hostname", r"\(302 Found - Redirection to url 'file:/"),
        ("/404?signature=secret", r"/404 \(404"),
    ],
)
def test_what_cannot_be_fetched_is_named_without_its_query(http_server, path, says):
    with pytest.raises(InvalidRequestError, match=f"^image: .*{says}") as refused:
        read_picture(http_server[1] + path)
    assert "secret" not in str(refused.value)


def test_redirect_from_https_to_http_is_refused(https, http_server):
    with pytest.raises(InvalidRequestError, match=r"\(it redirects to http\)"):
        read_picture(f"{https[1]}/to/{http_server[1]}/scene.png")
    assert http_server[0].asked == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://127.0.0.1:1/x", r"cannot fetch https://127.0.0.1:1/x \(.*refused\)"),
        ("https://someone:secret@127.0.0.1/x", "https://127.0.0.1/x has a user name; fetch it yourself"),
        ("https://[::1/x", "cannot fetch the URL "),
        ("https:///x", "cannot fetch https:///x "),
    ],
)
def test_wrong_url_is_refused_in_one_line(url, says):
    with pytest.raises(InvalidRequestError, match=f"^image: {says}") as refused:
        read_picture(url)
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_fetching_ends_at_the_deadline(http_server):
    with pytest.raises(DeadlineExceeded, match=r"^timeout: passed before image was fetched from http://.*/slow; allow"):
        read_picture(f"{http_server[1]}/slow", deadline=time.monotonic() + 0.3)


def test_proxy_of_the_environment_is_used_unless_no_proxy_names_the_host(http_server, monkeypatch):
    """The server is the proxy of an address that is nowhere: it gets the whole URL."""
    server, address = http_server
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "localhost")
    monkeypatch.setenv("http_proxy", address)
    assert read_picture("http://pictures.invalid/scene.png") == PICTURE
    assert server.asked == [("http://pictures.invalid/scene.png", "pictures.invalid")]
    assert read_picture(f"http://localhost:{server.server_port}/scene.png") == PICTURE
    assert server.asked[-1][0] == "/scene.png"
