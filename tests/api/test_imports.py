# SPDX-License-Identifier: Apache-2.0
"""Which room may import which (STYLE.md section 1), and that importing does nothing else."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

_SRC = Path(__file__).parents[2] / "src" / "slimrank"

# Two files without imports of their own; every room may read them.
_SHARED = frozenset({"_errors", "_version"})

_ROOMS = (
    "records",
    "linalg",
    "cost",
    "graph",
    "calibrate",
    "methods",
    "plan",
    "select",
    "_fits",
    "_work",
    "_apply",
    "scores",
    "recover",
    "deploy",
    "latency",
    "report",
)
_EVERYTHING = frozenset(
    {
        *_ROOMS,
        "_result",
        "_opened",
        "_anchors",
        "_group_survey",
        "_block_survey",
        "_survey",
        "_build",
        "_study",
        "_rivals",
        "_compress",
        "_search",
        "_scoring",
        "_references",
        "_cli",
        "demo",
        "__init__",
    }
)

_ALLOWED: Mapping[str, frozenset[str]] = {
    "_errors": frozenset(),
    "_version": frozenset(),
    "records": frozenset(),
    "linalg": frozenset(),
    "cost": frozenset({"records"}),
    "graph": frozenset({"records", "cost"}),
    "calibrate": frozenset({"records", "linalg", "graph"}),
    "methods": frozenset({"records", "linalg", "cost", "graph", "calibrate"}),
    "plan": frozenset({"records", "cost"}),
    "select": frozenset({"records", "cost", "plan"}),
    "_fits": frozenset({"records", "linalg", "methods"}),
    "_work": frozenset({"records", "cost", "plan"}),
    "_apply": frozenset(
        {"_work", "records", "linalg", "cost", "plan", "methods", "graph", "calibrate", "_fits"}
    ),
    "scores": frozenset({"records", "cost", "plan", "methods", "graph", "report"}),
    "recover": frozenset({"records", "graph", "calibrate", "plan", "_apply", "deploy", "report"}),
    "deploy": frozenset({"records", "graph", "plan", "_work", "_apply"}),
    "latency": frozenset({"records", "cost", "methods", "deploy"}),
    "report": frozenset({"records", "plan", "cost"}),
    "_result": frozenset(_ROOMS),
    # What a study measures stands beside what it is: STYLE.md's _study.py, in several files.
    "_opened": frozenset(_ROOMS),
    "_anchors": frozenset({*_ROOMS, "_opened"}),
    "_group_survey": frozenset({*_ROOMS, "_opened", "_anchors"}),
    "_block_survey": frozenset({*_ROOMS, "_opened", "_anchors", "_group_survey"}),
    "_survey": frozenset({*_ROOMS, "_opened", "_anchors", "_group_survey", "_block_survey"}),
    "_build": frozenset({*_ROOMS, "_result", "_opened"}),
    "_study": frozenset(
        {*_ROOMS, "_result", "_opened", "_group_survey", "_block_survey", "_survey", "_build"}
    ),
    "_rivals": frozenset({*_ROOMS, "_result", "_study"}),
    "_compress": frozenset({*_ROOMS, "_rivals", "_result", "_opened", "_survey", "_build", "_study"}),
    "_search": frozenset({*_ROOMS, "_result", "_opened", "_build", "_study", "_compress"}),
    "_scoring": frozenset({*_ROOMS, "_anchors", "_group_survey", "_survey", "_build", "_study"}),
    "_references": frozenset({"plan"}),
    "_cli": _EVERYTHING,
    "__main__": frozenset({"_cli"}),
    "demo": _EVERYTHING,
    "__init__": _EVERYTHING,
}
_NO_TORCH = frozenset({"_errors", "_version", "records", "cost", "plan", "select"})
# The demo's network stands for a user's own: it knows nothing of slimrank but its errors.
_ALONE = frozenset({"demo/_glyphnet.py"})


def _room_of(file: str) -> str:
    first = Path(file).parts[0]
    return first.removesuffix(".py")


def _imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, ``from a import b`` as ``a.b``; lazy imports count too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _broken_rules(file: str, source: str) -> list[str]:
    """Every broken rule of one file under ``src/slimrank``; empty when all hold."""
    room = _room_of(file)
    if room not in _ALLOWED:
        return [f"{file}: no room {room!r} in STYLE.md section 1; add it there and in {Path(__file__).name}"]
    broken = []
    for line, name in _imported_modules(source):
        place = f"{file}:{line}: imports {name}"
        top, *rest = name.split(".")
        if not top:
            broken.append(f"{place}: relative imports are banned; write slimrank.<room>")
        elif top == "torch" and room in _NO_TORCH:
            broken.append(f"{place}: {room}/ holds no torch")
        elif top == "slimrank":
            target = rest[0] if rest and rest[0] in _ALLOWED else "__init__"
            if file in _ALONE and target not in _SHARED:
                broken.append(f"{place}: this file knows nothing of slimrank but _errors")
            elif target not in _ALLOWED[room] | _SHARED | {room}:
                allowed = ", ".join(sorted(_ALLOWED[room] | _SHARED))
                broken.append(f"{place}: {room} may import of slimrank only {allowed}")
    return broken


def test_every_file_imports_only_what_its_room_allows() -> None:
    files = sorted(_SRC.rglob("*.py"))
    assert files, f"nothing under {_SRC}"
    broken = [
        rule
        for path in files
        for rule in _broken_rules(path.relative_to(_SRC).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        (
            "cost/_formulas.py",
            "import torch.nn as nn",
            "cost/_formulas.py:1: imports torch.nn: cost/ holds no torch",
        ),
        ("plan/_json.py", "def f():\n    from torch import Tensor", "plan/_json.py:2: imports torch.Tensor"),
        ("linalg/_svd.py", "from slimrank.records import Cost", "linalg may import of slimrank only _errors"),
        ("graph/_swap.py", "from slimrank import methods", "graph may import of slimrank only _errors"),
        ("report/_text.py", "import slimrank", "imports slimrank: report may import"),
        ("_result.py", "from slimrank._study import Study", "_result may import"),
        ("select/_greedy.py", "from ..plan import Plan", "relative imports are banned"),
        ("demo/_glyphnet.py", "from slimrank.records import Cost", "nothing of slimrank but"),
        ("cupboard/_x.py", "", "no room 'cupboard'"),
    ],
)
def test_a_broken_rule_is_named(file: str, source: str, message: str) -> None:
    (broken,) = _broken_rules(file, source)
    assert message in broken


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cost/_formulas.py", "from slimrank.records import Cost\nfrom slimrank._errors import RankError"),
        ("methods/_table.py", "from slimrank.methods._spatial_svd import build\nimport torch"),
        ("_study.py", "from slimrank._result import Result\nfrom slimrank.select import select_optimal"),
        ("demo/_run.py", "import slimrank as sr"),
        ("demo/_glyphnet.py", "from slimrank._errors import BatchesError"),
        ("deploy/_save.py", "from slimrank._version import __version__"),
    ],
)
def test_what_a_room_allows_passes(file: str, source: str) -> None:
    assert _broken_rules(file, source) == []


def test_importing_starts_no_cuda_and_writes_nothing(tmp_path: Path) -> None:
    code = "import slimrank, torch; print(torch.cuda.is_initialized())"
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []
