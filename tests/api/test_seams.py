# SPDX-License-Identifier: Apache-2.0
"""Only ``tests/seams.py`` names private modules: when a file moves in ``src``, no other test follows."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[1]
# Each with what it names private modules for; at most five.
_EXCEPTIONS: Mapping[str, str] = {
    "api/test_docs.py": "every class of _errors has a line in docs/errors.md",
    "api/test_imports.py": "lines of code that break the rules of rooms",
    "api/test_public_names.py": "every class of _errors is public",
    "api/test_seams.py": "lines of code that name private modules",
}
# Names in texts too: of code for another process, of what is patched.
_PRIVATE = re.compile(r"\b(?:slimrank|sr)(?:\.\w+)*\._[a-z]\w*")


def _private_names(source: str) -> list[str]:
    """Everything private of slimrank that a file of tests names."""
    imported = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return sorted({*_PRIVATE.findall(source), *filter(_PRIVATE.match, imported)})


@pytest.mark.slow
def test_no_other_file_of_the_tests_names_a_private_module() -> None:
    files = sorted(_TESTS.rglob("*.py"))
    assert _TESTS / "seams.py" in files
    named = {
        path.relative_to(_TESTS).as_posix(): names
        for path in files
        if (names := _private_names(path.read_text(encoding="utf-8")))
    }
    assert {file: names for file, names in named.items() if file not in {"seams.py", *_EXCEPTIONS}} == {}
    assert set(_EXCEPTIONS) <= set(named), "an exception that is not needed"
    assert len(_EXCEPTIONS) <= 5


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from slimrank import _fit", "slimrank._fit"),
        ("from slimrank.methods import Pair, _pair as pairs", "slimrank.methods._pair"),
        ("def test():\n    from slimrank._study import Study", "slimrank._study"),
        ("import slimrank.channels.trace._ops", "slimrank.channels.trace._ops"),
        ("monkeypatch.setattr(sr._study, 'session_of', None)", "sr._study"),
        ("python('from slimrank.cli._main import cli')", "slimrank.cli._main"),
    ],
)
def test_a_private_module_is_found(source: str, name: str) -> None:
    assert name in _private_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "import slimrank as sr\nsr.__version__",
        "from slimrank.plan import Plan",
        "from seams import best_fit as _best_fit",
        "from slimrank.methods import fit_pair as _fit_pair",
    ],
)
def test_what_is_public_passes(source: str) -> None:
    assert _private_names(source) == []
