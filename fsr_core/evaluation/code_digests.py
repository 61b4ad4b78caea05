"""Digests of the code that an answer depends on: answers that other code gave are asked anew."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from inspect import getfile
from pathlib import Path

from fsr_core.compressor import Compressor

__all__ = ["method_digest", "path_digest"]

CORE = Path(__file__).parents[1]
# What lies between a question and its answer, apart from the method.
_PATH = (
    "backbones/**/*.py",
    "pictures/*.py",
    "tiny/scenes.py",
    "tiny/quilts.py",
    "tiny/hard_sets.py",
    "tiny/questions.py",
    "evaluation/answers.py",
    "evaluation/question_sets.py",
)


@cache
def method_digest(method: type[Compressor]) -> str:
    """Digest of a method's module and of the modules of `fsr_core` that it imports, directly or not.

    For a third party's method: of its file, of the whole package that holds it, and of all of `fsr_core`.
    """
    package = method.__module__.partition(".")[0]
    if package != "fsr_core":
        top = getattr(sys.modules[package], "__file__", None)
        package_files = Path(top).parent.rglob("*.py") if top and Path(top).name == "__init__.py" else []
        return _digest([Path(getfile(method)), *package_files, *CORE.rglob("*.py")])
    waiting, done, files = [method.__module__], {"fsr_core.compressor"}, []
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name in done or spec is None or spec.origin is None:
            continue
        done.add(name)
        files.append(Path(spec.origin))
        source = files[-1].read_bytes()
        waiting += sorted(module.decode() for module in re.findall(rb"^from (fsr_core[\w.]*) import", source, re.M))
    return _digest(files)


@cache
def path_digest() -> str:
    """Digest of all that lies between a question and its answer except the method, and of the libraries' versions."""
    files = [file for pattern in _PATH for file in CORE.glob(pattern)]
    versions = "-".join(version(name) for name in ("torch", "transformers", "pillow", "numpy"))
    return f"{_digest(files)}-{hashlib.sha256(versions.encode()).hexdigest()[:6]}"


def _digest(files: Iterable[Path]) -> str:
    """Digest of the files' contents, in any order."""
    contents = sorted(hashlib.sha256(file.read_bytes()).digest() for file in set(files))
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]
