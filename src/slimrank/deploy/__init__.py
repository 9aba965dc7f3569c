# SPDX-License-Identifier: Apache-2.0
"""Save and load without pickle; a model made ready for exporters."""

from slimrank.deploy._prepare import Prepared, prepare
from slimrank.deploy._saved_model import (
    PLAN_FILE,
    REPORT_FILE,
    check_target,
    is_saved_model,
    load_artifact,
    save_artifact,
)

__all__ = [
    "PLAN_FILE",
    "REPORT_FILE",
    "Prepared",
    "check_target",
    "is_saved_model",
    "load_artifact",
    "prepare",
    "save_artifact",
]
