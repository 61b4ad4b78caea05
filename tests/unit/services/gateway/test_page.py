import json
import re
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image, ImageChops

from fsr.gateway.callers.auth import ApiKeys
from fsr.gateway.http.page import FOLDER, HEADERS, page_router
from fsr.gateway.options.settings import GatewaySettings
from fsr_core.overlay import FOCUS_INK, SCAN_INK
from fsr_core.tiny.scenes import draw, make_scene
from helpers import page_scenes

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
TYPES |= {"json": "application/json", "webp": "image/webp"}


def client(keys=(), **options):
    app = FastAPI()
    app.include_router(page_router(GatewaySettings(**options), ApiKeys(list(keys), None)))
    return TestClient(app)


@pytest.mark.parametrize("path", FILES)
def test_file_comes_with_type_policy_and_etag(path):
    with client() as gateway:
        response = gateway.get(f"/page/{path}")
        assert response.status_code == 200 and response.content == (FOLDER / path).read_bytes()
        assert response.headers["content-type"].split(";")[0] == TYPES[path.rpartition(".")[2]]
        assert response.headers.items() >= HEADERS.items()
        again = gateway.get(f"/page/{path}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"") and again.headers["etag"] == response.headers["etag"]
        assert gateway.get(f"/page/{path}", headers={"if-none-match": '"another"'}).status_code == 200


def test_index_is_at_the_root():
    with client() as gateway:
        assert gateway.get("/").content == (FOLDER / "index.html").read_bytes()
        assert gateway.head("/").status_code == 200


@pytest.mark.parametrize("path", ["none.js", "../page.py", "..%2fpage.py", "scenes", "/etc/passwd", ""])
def test_path_outside_the_page_is_not_found(path):
    with client() as gateway:
        assert gateway.get(f"/page/{path}").status_code == 404


def test_config_says_what_the_page_must_know():
    with client() as gateway:
        open_one = gateway.get("/page/config.json").json()
    assert open_one["key_needed"] is False and open_one["grafana_url"] is None and re.match(r"\d", open_one["version"])
    with client(keys=["secret"], grafana_url="https://grafana.example/d", max_image_bytes=5) as gateway:
        response = gateway.get("/page/config.json")
    assert response.headers.items() >= HEADERS.items() and "secret" not in response.text
    assert response.json() | {"key_needed": True, "max_image_bytes": 5} == response.json()
    assert response.json()["grafana_url"] == "https://grafana.example/d"


@pytest.mark.parametrize("address", ["grafana:3000", "javascript:alert(1)", "/grafana", "https://"])
def test_grafana_address_without_scheme_and_host_is_refused(address):
    with pytest.raises(SystemExit, match=r"--grafana-url: .* is no web address; write http://host:port"):
        GatewaySettings.load(["--grafana-url", address])


class Outside(HTMLParser):
    """Collects what the policy forbids in a page: inline code and style, and addresses elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "style" or name.startswith("on") or (name in ("src", "href") and "//" in (value or "")):
                self.found.append((tag, name, value))
        if tag == "style" or (tag == "script" and "src" not in dict(attributes)):
            self.found.append((tag,))


def test_page_has_nothing_inline_and_nothing_from_elsewhere():
    parser = Outside()
    parser.feed((FOLDER / "index.html").read_text())
    assert parser.found == []


def test_colours_are_those_of_the_overlay_of_the_command():
    code, style = (FOLDER / "overlay.js").read_text(), (FOLDER / "page.css").read_text()
    for name, ink in (("focus", FOCUS_INK), ("scan", SCAN_INK)):
        colour = "rgb({}, {}, {})".format(*ink)
        assert f'{name.upper()}_INK = "{colour}"' in code and f"--{name}: {colour}" in style


def test_scenes_are_what_the_generator_draws():
    """Where it fails after a change of the generator: python tests/helpers/page_scenes.py"""
    assert json.loads((FOLDER / "scenes/scenes.json").read_text()) == page_scenes.entries()
    for seed in page_scenes.SEEDS:
        with Image.open(FOLDER / f"scenes/{seed}.webp") as stored:
            assert ImageChops.difference(stored.convert("RGB"), draw(make_scene(seed))).getbbox() is None
