"""A checkpoint from the hub, by the hub's own client and a server on this machine in the hub's place."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from fsr_core.backbones.checkpoints.checkpoint import resolve

COMMIT = "c" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


class _Hub(BaseHTTPRequestHandler):
    """The repository org/model."""

    def do_GET(self):
        self.do_HEAD(with_body=True)

    def do_HEAD(self, with_body=False):
        if "/resolve/" in self.path:
            body = FILES[self.path.rpartition("/")[2]]
        elif "/tree/" in self.path:
            files = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            body = json.dumps(files).encode()
        else:
            body = json.dumps({"id": "org/model", "sha": COMMIT}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing on standard error."""


@contextmanager
def _hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    with _hub() as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield tmp_path / "hub"


def test_hub_id_when_it_exists_is_stored_in_the_cache(cache):
    folder = resolve("org/model")
    assert folder.is_relative_to(cache)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_hub_id_when_the_cache_cannot_be_written_names_it_and_the_remedy(cache):
    cache.touch()  # a file where the folder should be
    with pytest.raises(ValueError, match=r"model: 'org/model' cannot be stored \(.*hub.*\); set HF_HOME to a folder"):
        resolve("org/model")
