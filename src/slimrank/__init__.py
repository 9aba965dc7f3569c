# SPDX-License-Identifier: Apache-2.0
"""slimrank: trained PyTorch models, smaller and faster, with their accuracy kept."""

from slimrank._errors import (
    BatchesError,
    BatchesTypeError,
    BudgetError,
    DeviceError,
    ExportError,
    FileError,
    GradientError,
    LatencyError,
    MissingPackageError,
    ModelError,
    NonFiniteError,
    NotEmptyError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    PlanError,
    RankError,
    ScoreError,
    ShapeError,
    SlimrankError,
    StudyError,
    UnknownNameError,
    WeightError,
)
from slimrank._result import Result
from slimrank._study import Study, study
from slimrank._version import __version__
from slimrank.latency import Latencies
from slimrank.methods import METHODS
from slimrank.plan import Plan
from slimrank.recipes import (
    activation_bytes,
    apply,
    collect_latency,
    compress,
    export,
    load,
    measure_latency,
    measure_scores,
    meet_latency,
    prepare_latency,
    search_split,
    smallest,
)
from slimrank.records import Agreement, Exported, Int8, OutputAgreement
from slimrank.recover import distill, finetune
from slimrank.scores import Scores

__all__ = [
    "METHODS",
    "Agreement",
    "BatchesError",
    "BatchesTypeError",
    "BudgetError",
    "DeviceError",
    "ExportError",
    "Exported",
    "FileError",
    "GradientError",
    "Int8",
    "Latencies",
    "LatencyError",
    "MissingPackageError",
    "ModelError",
    "NonFiniteError",
    "NotEmptyError",
    "OptionError",
    "OutOfMemoryError",
    "OutputAgreement",
    "OutputError",
    "Plan",
    "PlanError",
    "RankError",
    "Result",
    "ScoreError",
    "Scores",
    "ShapeError",
    "SlimrankError",
    "Study",
    "StudyError",
    "UnknownNameError",
    "WeightError",
    "__version__",
    "activation_bytes",
    "apply",
    "collect_latency",
    "compress",
    "distill",
    "export",
    "finetune",
    "load",
    "measure_latency",
    "measure_scores",
    "meet_latency",
    "prepare_latency",
    "search_split",
    "smallest",
    "study",
]


def __dir__() -> list[str]:
    """The public names alone; rooms such as ``slimrank.plan`` can be imported all the same."""
    return sorted(__all__)
