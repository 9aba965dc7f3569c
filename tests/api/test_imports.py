# SPDX-License-Identifier: Apache-2.0
"""Which room may import which (docs/rooms.toml), and that importing does nothing else."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SRC = _ROOT / "src" / "slimrank"
_RULES = tomllib.loads((_ROOT / "docs" / "rooms.toml").read_text(encoding="utf-8"))
_ROOMS: Mapping[str, Mapping[str, object]] = {room["name"]: room for room in _RULES["room"]}
_SHARED = frozenset(_RULES["shared"])
_ALLOWED: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(_SHARED, frozenset()),
    **{name: frozenset(room["imports"]) for name, room in _ROOMS.items()},
}
_NO_TORCH = frozenset({*_SHARED, *(name for name, room in _ROOMS.items() if not room.get("torch", True))})
# Files that stand for a user's own: they know nothing of slimrank but its errors.
_ALONE = frozenset(f"{name}/{file}" for name, room in _ROOMS.items() for file in room.get("alone", ()))


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


def _looked_up_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module that is looked up by its name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def _broken_rules(file: str, source: str) -> list[str]:
    """Every broken rule of one file under ``src/slimrank``; empty when all hold."""
    room = _room_of(file)
    if room not in _ALLOWED:
        return [f"{file}: no room {room!r} in docs/rooms.toml; add it there and in docs/architecture.md"]
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
    late = _ROOMS[room].get("late", ()) if room in _ROOMS else ()
    for line, name in _looked_up_modules(source):
        top, *rest = name.split(".")
        if top == "slimrank" and (not rest or rest[0] not in late):
            broken.append(f"{file}:{line}: looks up {name}, which is not in `late` of {room}")
    return broken


@pytest.mark.slow
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
        (
            "forward/_run.py",
            "from slimrank.surgery import slim",
            "forward may import of slimrank only _errors",
        ),
        ("channels/trial/_check.py", "from slimrank import capture", "channels may import of slimrank only"),
        ("report/_text.py", "import slimrank", "imports slimrank: report may import"),
        ("_result.py", "from slimrank._study import Study", "_result may import"),
        ("survey/_layers.py", "from slimrank.select import select_plan", "survey may import"),
        ("select/_greedy.py", "from ..plan import Plan", "relative imports are banned"),
        ("demo/_glyphnet.py", "from slimrank.records import Cost", "nothing of slimrank but"),
        ("cupboard/_x.py", "", "no room 'cupboard'"),
        (
            "plan/_plan.py",
            "import_module('slimrank.select')",
            "looks up slimrank.select, which is not in `late`",
        ),
        ("cost/_forms.py", "importlib.import_module('slimrank.report')", "not in `late` of cost"),
    ],
)
def test_a_broken_rule_is_named(file: str, source: str, message: str) -> None:
    (broken,) = _broken_rules(file, source)
    assert message in broken


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cost/_formulas.py", "from slimrank.records import Cost\nfrom slimrank._errors import RankError"),
        ("methods/_table.py", "from slimrank.methods._pair import fit_pair\nimport torch"),
        ("_study.py", "from slimrank._result import Result\nfrom slimrank.select import select_optimal"),
        ("demo/_run.py", "import slimrank as sr"),
        ("demo/_glyphnet.py", "from slimrank._errors import BatchesError"),
        ("deploy/_save.py", "from slimrank._version import __version__"),
        ("plan/_plan.py", "import_module('slimrank.report')"),
    ],
)
def test_what_a_room_allows_passes(file: str, source: str) -> None:
    assert _broken_rules(file, source) == []


def test_rooms_stand_from_the_ground_up() -> None:
    """Whatever a room may import stands above it in the file, so that no circle can arise."""
    order = {name: floor for floor, name in enumerate(_ROOMS)}
    upwards = [
        f"{name} imports {other}"
        for name, room in _ROOMS.items()
        for other in room["imports"]
        if order[other] >= order[name]
    ]
    assert upwards == []


def test_rooms_without_torch_import_only_such_rooms() -> None:
    assert [
        f"{name} imports {other}"
        for name in _ROOMS
        if name in _NO_TORCH
        for other in _ROOMS[name]["imports"]
        if other not in _NO_TORCH
    ] == []


def test_no_rule_names_a_room_that_is_not_there() -> None:
    there = {
        path.name.removesuffix(".py") for path in _SRC.iterdir() if not path.name.startswith(("__pyc", "py."))
    }
    assert there == {*_ROOMS, *_SHARED}


@pytest.mark.slow
def test_files_of_a_room_import_each_other_in_no_circle() -> None:
    modules = {
        ".".join(("slimrank", *path.relative_to(_SRC).with_suffix("").parts)): path
        for path in _SRC.rglob("*.py")
        if path.name != "__init__.py"
    }
    arrows = {
        name: {
            found
            for _, target in _imported_modules(path.read_text(encoding="utf-8"))
            for found in (target, target.rpartition(".")[0])
            if found in modules and found != name
        }
        for name, path in modules.items()
    }
    circles = [
        f"{name} imports {other}, which imports it back"
        for name in arrows
        for other in arrows[name]
        if name in _reached_from(other, arrows)
    ]
    assert circles == []


def _reached_from(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for target in arrows[queue.pop()] - seen:
            seen.add(target)
            queue.append(target)
    return seen


def test_the_architecture_page_tells_the_same_rooms() -> None:
    page = (_ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \|$", page, flags=re.MULTILINE)
    told = [(name, job, re.findall(r"`(\w+)`", imports)) for name, job, imports in rows]
    assert told == [(name, room["job"], list(room["imports"])) for name, room in _ROOMS.items()]


def test_every_room_has_a_short_readme() -> None:
    rooms = [path for path in _SRC.iterdir() if path.is_dir() and (path / "__init__.py").is_file()]
    lengths = {
        room.name: len((room / "README.md").read_text(encoding="utf-8").splitlines())
        if (room / "README.md").is_file()
        else 0
        for room in rooms
    }
    assert {name: lines for name, lines in lengths.items() if not 3 <= lines <= 15} == {}


@pytest.mark.slow
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
