# SPDX-License-Identifier: Apache-2.0
"""slimrank: trained PyTorch models, smaller and faster, with their accuracy kept."""

from slimrank._errors import (
    BatchesError,
    BatchesTypeError,
    BudgetError,
    DeviceError,
    FileError,
    GradientError,
    ModelError,
    NonFiniteError,
    NotEmptyError,
    OptionError,
    OutputError,
    PlanError,
    RankError,
    ShapeError,
    SlimrankError,
    StudyError,
    UnknownNameError,
    WeightError,
)
from slimrank._result import Result
from slimrank._study import Study, apply, compress, load, study
from slimrank._version import __version__
from slimrank.methods import METHODS
from slimrank.plan import Plan

__all__ = [
    "METHODS",
    "BatchesError",
    "BatchesTypeError",
    "BudgetError",
    "DeviceError",
    "FileError",
    "GradientError",
    "ModelError",
    "NonFiniteError",
    "NotEmptyError",
    "OptionError",
    "OutputError",
    "Plan",
    "PlanError",
    "RankError",
    "Result",
    "ShapeError",
    "SlimrankError",
    "Study",
    "StudyError",
    "UnknownNameError",
    "WeightError",
    "__version__",
    "apply",
    "compress",
    "load",
    "study",
]
