# SPDX-License-Identifier: Apache-2.0
"""Fixtures and rules for every test."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# The nets of the tests are tiny: a second thread costs more than it brings, above all beside other work.
torch.set_num_threads(1)
# For the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_HERE = Path(__file__).parent
_GOLDEN = _HERE / "golden"


def _load(path: str) -> None:
    """Makes a module beside the tests importable by its name."""
    name = Path(path).name
    spec = importlib.util.spec_from_file_location(name, _HERE / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _path in (
    "specs",
    "seams",
    "invented_times",
    "property/select_nets",
    "unit/calibrate/calibrate_nets",
    "integration/nets",
    "integration/zoo_nets",
    "integration/pruning_nets",
    "fixtures/stored_net",
):
    _load(_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture
def rng() -> torch.Generator:
    """A generator with a fixed seed; every test starts from the same state."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a text with ``tests/golden/<name>``; ``make golden`` (SLIMRANK_GOLDEN=1) rewrites the file."""

    def check(name: str, text: str) -> None:
        path = _GOLDEN / name
        if os.environ.get("SLIMRANK_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; make golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} moved; if that is meant: make golden"

    return check
