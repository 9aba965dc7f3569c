# SPDX-License-Identifier: Apache-2.0
"""slimrank: trained PyTorch models, smaller and faster, with their accuracy kept.

Names are imported when they are asked for, so that the command line can say how OpenMP is to wait before
torch is there, and answer without torch where it needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from slimrank._version import __version__

if TYPE_CHECKING:
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
    from slimrank.latencies import Latencies
    from slimrank.live import serve
    from slimrank.pareto import Pareto
    from slimrank.plan import Plan
    from slimrank.recipes import (
        activation_bytes,
        apply,
        collect_latency,
        compress,
        export,
        from_onnx,
        from_pretrained,
        load,
        measure_latency,
        measure_scores,
        meet_latency,
        prepare_latency,
        search_split,
        smallest,
    )
    from slimrank.records import METHODS, MORE_METHODS, Agreement, Exported, Int8, OutputAgreement
    from slimrank.recover import distill, finetune
    from slimrank.scores import Scores

__all__ = [
    "METHODS",
    "MORE_METHODS",
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
    "Pareto",
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
    "from_onnx",
    "from_pretrained",
    "load",
    "measure_latency",
    "measure_scores",
    "meet_latency",
    "prepare_latency",
    "search_split",
    "serve",
    "smallest",
    "study",
]

# Where each name is; tests hold it against what type checkers are shown above.
_HOMES = {
    "Agreement": "slimrank.records",
    "BatchesError": "slimrank._errors",
    "BatchesTypeError": "slimrank._errors",
    "BudgetError": "slimrank._errors",
    "DeviceError": "slimrank._errors",
    "ExportError": "slimrank._errors",
    "Exported": "slimrank.records",
    "FileError": "slimrank._errors",
    "GradientError": "slimrank._errors",
    "Int8": "slimrank.records",
    "Latencies": "slimrank.latencies",
    "LatencyError": "slimrank._errors",
    "METHODS": "slimrank.records",
    "MORE_METHODS": "slimrank.records",
    "MissingPackageError": "slimrank._errors",
    "ModelError": "slimrank._errors",
    "NonFiniteError": "slimrank._errors",
    "NotEmptyError": "slimrank._errors",
    "OptionError": "slimrank._errors",
    "OutOfMemoryError": "slimrank._errors",
    "OutputAgreement": "slimrank.records",
    "OutputError": "slimrank._errors",
    "Pareto": "slimrank.pareto",
    "Plan": "slimrank.plan",
    "PlanError": "slimrank._errors",
    "RankError": "slimrank._errors",
    "Result": "slimrank._result",
    "ScoreError": "slimrank._errors",
    "Scores": "slimrank.scores",
    "ShapeError": "slimrank._errors",
    "SlimrankError": "slimrank._errors",
    "Study": "slimrank._study",
    "StudyError": "slimrank._errors",
    "UnknownNameError": "slimrank._errors",
    "WeightError": "slimrank._errors",
    "activation_bytes": "slimrank.recipes",
    "apply": "slimrank.recipes",
    "collect_latency": "slimrank.recipes",
    "compress": "slimrank.recipes",
    "distill": "slimrank.recover",
    "export": "slimrank.recipes",
    "finetune": "slimrank.recover",
    "from_onnx": "slimrank.recipes",
    "from_pretrained": "slimrank.recipes",
    "load": "slimrank.recipes",
    "measure_latency": "slimrank.recipes",
    "measure_scores": "slimrank.recipes",
    "meet_latency": "slimrank.recipes",
    "prepare_latency": "slimrank.recipes",
    "search_split": "slimrank.recipes",
    "serve": "slimrank.live",
    "smallest": "slimrank.recipes",
    "study": "slimrank._study",
}


# Type checkers would take every name for one of these.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name, imported now; later it is there like any other."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    """The public names alone; rooms such as ``slimrank.plan`` can be imported all the same."""
    return sorted(__all__)
