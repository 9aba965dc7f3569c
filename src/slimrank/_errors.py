# SPDX-License-Identifier: Apache-2.0
"""The error tree: one base, and each child is also a standard type."""


class SlimrankError(Exception):
    """Anything that slimrank refuses; the message says where, what is allowed and what to do."""


class BatchesError(SlimrankError, ValueError):
    """Calibration batches that are empty, exhausted, changing, or refused by the model."""


class BatchesTypeError(BatchesError, TypeError):
    """Calibration batches of a kind that cannot be read several times: a tensor, a generator."""


class NonFiniteError(SlimrankError, ValueError):
    """Data, weights, gradients or outputs that hold nan or inf."""


class ModelError(SlimrankError, ValueError):
    """A model that cannot be read, copied or compressed."""


class OutputError(SlimrankError, ValueError):
    """Outputs in which the tensors that matter cannot be found."""


class GradientError(SlimrankError, RuntimeError):
    """Outputs through which no gradient flows back to the layers."""


class DeviceError(SlimrankError, RuntimeError):
    """Model and batches that lie on different devices."""


class UnknownNameError(SlimrankError, LookupError, ValueError):
    """A layer, method, metric, selector or pattern that does not exist."""


class OptionError(SlimrankError, ValueError):
    """An option outside its allowed values."""


class OutOfMemoryError(SlimrankError, MemoryError):
    """Memory that was used up in the middle of a run.

    Attributes:
        is_told: whether the message says what is kept and what to lower.
    """

    is_told = False


class BudgetError(SlimrankError, ValueError):
    """A budget that is no keep ratio, or that no plan can meet."""


class RankError(SlimrankError, ValueError):
    """A rank or ratio that a layer cannot take."""


class PlanError(SlimrankError, ValueError):
    """A plan that cannot be read, or that belongs to another model."""


class ScoreError(SlimrankError, ValueError):
    """A score table or score function that cannot be used."""


class LatencyError(SlimrankError, ValueError):
    """A table of measured times that cannot be used, or that belongs to something else."""


class ShapeError(SlimrankError, ValueError):
    """A tensor of the wrong shape."""


class WeightError(SlimrankError, ValueError):
    """A weight that cannot be decomposed."""


class FileError(SlimrankError, OSError):
    """A file of slimrank that is missing, truncated or altered."""


class NotEmptyError(FileError, FileExistsError):
    """A directory that holds something already."""


class StudyError(SlimrankError, ValueError):
    """A study that belongs to another model, other data or other options, or lacks what is asked of it."""


class ExportError(SlimrankError, RuntimeError):
    """A model that cannot be written in a format, or whose file answers otherwise than the model."""


class MissingPackageError(SlimrankError, ImportError):
    """A package that only a part of slimrank needs, and that is not installed."""
