"""Renews the digests of the images that ours are made from and that run beside them. Tags move; a digest does not.

python deploy/docker/digests.py            # asks each registry for the digest of the tag beside it, and writes it
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

DEPLOY = Path(__file__).parents[1]
FILES = [*sorted((DEPLOY / "docker").glob("*.Dockerfile")), DEPLOY / "compose.yaml", DEPLOY / "compose.traces.yaml"]
FILES += [DEPLOY / "k8s/components/gcs-redis/redis.yaml", DEPLOY / "helm/fsr/values.yaml"]
# `image: NAME:TAG@DIGEST` of YAML files, and `ARG PYTHON=TAG@DIGEST` of a Dockerfile.
PINNED = re.compile(r"(?P<name>[\w./:-]*\w)[:=](?P<tag>[\w.-]+)@(?P<digest>sha256:[0-9a-f]{64})")
# An index of images for several machines, before the image for one.
_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def manifest_url(name: str, tag: str) -> str:
    """Where a registry has the manifest. A name without a registry's host is one of Docker Hub."""
    host, _, path = name.partition("/")
    if not path or not re.search(r"[.:]|^localhost$", host):
        host, path = "registry-1.docker.io", name if path else f"library/{name}"
    scheme = "http" if re.match(r"(localhost|127\.0\.0\.1)(:|$)", host) else "https"
    return f"{scheme}://{host}/v2/{path}/manifests/{tag}"


def token(challenge: str) -> str:
    """A token for whoever asks: what the header WWW-Authenticate of a registry tells to get."""
    parts = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    url = f"{parts.pop('realm')}?{urllib.parse.urlencode(parts)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        answer = json.load(response)
    return str(answer.get("token") or answer["access_token"])


def digest(name: str, tag: str) -> str:
    """The digest that a registry has for a tag today. OSError: the registry cannot be reached, or has no such tag."""
    request = urllib.request.Request(manifest_url(name, tag), headers={"Accept": ", ".join(_TYPES)}, method="HEAD")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
        request.add_header("Authorization", f"Bearer {token(error.headers['WWW-Authenticate'])}")
        response = urllib.request.urlopen(request, timeout=30)
    with response:
        return str(response.headers["Docker-Content-Digest"])


def renew(files: list[Path]) -> None:
    """Writes today's digest of every pinned tag into the files. OSError: nothing was written."""
    texts = {path: path.read_text() for path in files}
    pinned = {(m["name"].lower(), m["tag"]) for text in texts.values() for m in PINNED.finditer(text)}
    found = {image: digest(*image) for image in sorted(pinned)}
    for path, text in texts.items():
        path.write_text(PINNED.sub(lambda m: m[0].replace(m["digest"], found[m["name"].lower(), m["tag"]]), text))


if __name__ == "__main__":
    try:
        renew(FILES)
    except OSError as error:
        sys.exit(f"error: cannot ask the registry: {error}; nothing was changed")
