# SPDX-License-Identifier: Apache-2.0
"""Lets the property tests import the strategies beside them."""

import importlib.util
import sys
from pathlib import Path

_NAME = "random_nets"


def _load() -> None:
    spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name(f"{_NAME}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)


_load()
