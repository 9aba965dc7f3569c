# SPDX-License-Identifier: Apache-2.0
"""The public face changes only on purpose: with its frozen list, and with the changelog."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import slimrank
from slimrank import _errors

_ROOT = Path(__file__).parents[2]


def _frozen_names() -> list[str]:
    return (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").split()


def test_public_names_are_the_frozen_list() -> None:
    assert sorted(slimrank.__all__) == _frozen_names()


def test_public_names_are_sorted_and_exist() -> None:
    assert _frozen_names() == sorted(_frozen_names())
    assert [name for name in slimrank.__all__ if not hasattr(slimrank, name)] == []


def test_type_checkers_are_shown_what_is_imported() -> None:
    tree = ast.parse(Path(slimrank.__file__).read_text(encoding="utf-8"))
    shown, hidden = (node for node in tree.body if isinstance(node, ast.If))
    assert (ast.unparse(shown.test), ast.unparse(hidden.test)) == ("TYPE_CHECKING", "not TYPE_CHECKING")
    # They would take any name for one of the package's.
    assert [node.name for node in hidden.body if isinstance(node, ast.FunctionDef)] == ["__getattr__"]
    assert "__getattr__" not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    told = {
        alias.name: node.module
        for node in shown.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == dict(slimrank._HOMES)
    assert sorted([*told, "__version__"]) == _frozen_names()


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'slimrank' has no attribute 'compres'"):
        slimrank.compres  # noqa: B018


def test_dir_lists_the_public_names_alone() -> None:
    assert dir(slimrank) == _frozen_names()


@pytest.mark.parametrize("room", ["plan", "survey", "forward"])
def test_rooms_can_be_imported_although_dir_leaves_them_out(room: str) -> None:
    module = importlib.import_module(f"slimrank.{room}")
    assert getattr(slimrank, room) is module


def test_every_error_is_public_and_also_a_standard_error() -> None:
    errors = [error for _, error in inspect.getmembers(_errors, inspect.isclass)]
    for error in errors:
        assert error.__name__ in _frozen_names()
        assert issubclass(error, _errors.SlimrankError)
        standard = [base for base in error.__mro__ if base.__module__ == "builtins"]
        assert error is _errors.SlimrankError or set(standard) - {Exception, BaseException, object}


def test_version_is_the_top_entry_of_the_changelog() -> None:
    changelog = (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    top = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert top is not None, "CHANGELOG.md has no entry: give it a heading such as '## 0.1.0'"
    assert slimrank.__version__ == top[1], "src/slimrank/_version.py and CHANGELOG.md disagree"
