# SPDX-License-Identifier: Apache-2.0
"""Save and load, without pickle."""

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
    "check_target",
    "is_saved_model",
    "load_artifact",
    "save_artifact",
]
