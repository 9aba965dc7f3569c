# SPDX-License-Identifier: Apache-2.0
"""Benchmarks and examples need packages that tests do without; what they name of slimrank is there."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FILES = sorted([*(_ROOT / "benchmarks").rglob("*.py"), *(_ROOT / "examples").glob("*.py")])
_PATCHED = re.compile(r"slimrank(\.\w+)+")


def _names(source: str) -> Iterator[str]:
    """Dotted names that are imported from slimrank, or given to ``mock.patch`` as a text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("slimrank"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimrank"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and _PATCHED.fullmatch(node.value)
        ):
            yield node.value


def _is_there(name: str) -> bool:
    found: object = importlib.import_module("slimrank")
    path = "slimrank"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.relative_to(_ROOT).as_posix())
def test_names_of_slimrank_are_there(file: Path) -> None:
    assert [name for name in _names(file.read_text(encoding="utf-8")) if not _is_there(name)] == []


def test_names_that_are_gone_are_seen() -> None:
    lines = (
        "import slimrank.plan",
        "from slimrank.capture import find_tails",
        'PATCHES = {"slimrank.graph._X": 0}',
        '"see slimrank.graph"',
    )
    names = sorted(_names("\n".join(lines)))
    assert names == ["slimrank.capture.find_tails", "slimrank.graph._X", "slimrank.plan"]
    assert [name for name in names if not _is_there(name)] == names[:2]
