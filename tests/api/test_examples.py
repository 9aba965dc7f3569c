# SPDX-License-Identifier: Apache-2.0
"""The short examples stay short, `make examples` runs all of them, and the fastest do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
# Longer, or read by the command line: not for `make examples`.
_OTHERS = {"own_model", "train_demo", "train_int8"}
_SHORT = sorted(path.stem for path in (_ROOT / "examples").glob("*.py") if path.stem not in _OTHERS)


def test_make_runs_every_short_example() -> None:
    makefile = (_ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^EXAMPLES := (.*)$", makefile, flags=re.MULTILINE)
    assert sorted(names.split()) == _SHORT


@pytest.mark.parametrize("name", _SHORT)
def test_examples_are_short(name: str) -> None:
    assert len((_ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 40


def _printed(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(_ROOT / "examples" / f"{name}.py")],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


@pytest.mark.slow
def test_the_example_of_several_outputs_runs(tmp_path: Path) -> None:
    printed = _printed("several_outputs", tmp_path)
    costs = re.findall(r"^([\d,]+) -> ([\d,]+) MACs", printed, flags=re.MULTILINE)
    assert len(costs) == 2
    for before, after in costs:
        assert int(after.replace(",", "")) <= 0.5 * int(before.replace(",", ""))
    # The output that got a weight lost less.
    light, heavy = (float(lost) for lost in re.findall(r"'depth': '([\d.]+)%'", printed))
    assert heavy < light


@pytest.mark.slow
def test_the_example_of_a_text_classifier_runs(tmp_path: Path) -> None:
    rows = re.findall(r"([\d,]+) MACs, ([\d.]+)% right", _printed("text_classifier", tmp_path))
    (before, right_before), (after, right_after) = rows
    assert int(after.replace(",", "")) <= 0.1 * int(before.replace(",", ""))
    assert float(right_before) > 95
    # Guessing one class gives about half.
    assert float(right_after) > 70
