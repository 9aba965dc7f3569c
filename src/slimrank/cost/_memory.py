# SPDX-License-Identifier: Apache-2.0
"""Memory that the statistics of a layer take, and the tables of what the parts of a run may take."""

from dataclasses import dataclass

from slimrank.cost._row_view import row_view
from slimrank.cost._rows import (
    MAX_EXACT_NUMBERS,
    MAX_METRIC_WIDTH,
    block_width,
    is_wide,
    keeps_rows,
    row_cap,
    row_width,
    rows_available,
)
from slimrank.records import LayerSpec

# Bytes of one number.
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingLimits:
    """What bounds how many samples and rows are used, in bytes. Each of these changes numbers.

    They are the same in every run, whatever ``memory=`` says.

    Attributes:
        graph: activations that one micro-batch keeps for its backward pass. Less makes micro-batches smaller;
            rows are drawn for each micro-batch.
        live_activations: what is alive at one depth of both networks while layers are fitted. Less means fits
            to fewer samples.
        clipped_rows: rows of one layer that are stored for the fit to its clipped outputs.
            Less means fewer rows there.
        outputs: outputs of the model that are stored, as references or to read what they mean. Less means
            fewer samples for measured damages.
    """

    graph: int = 600_000_000
    live_activations: int = 1_200_000_000
    clipped_rows: int = 250_000_000
    outputs: int = 250_000_000


# The limits of every run; its attributes say what each of them trades.
SAMPLING = SamplingLimits()

# ``memory=`` where the caller gives none.
DEFAULT_MEMORY = 2_500_000_000
# What is then left at least for all that can be cut: without it, large models would take far longer unasked.
LEAST_ROOM = 1_000_000_000

# Shares of what is left of ``memory=`` once all that cannot be cut has its place. Those that are held at the
# same time sum up to less than 1; the rest is for what the allocator holds beside them.
_LAYER_MOMENTS, _GROUP_MOMENTS, _REPLAY = 0.5, 0.5, 0.35
_PREFIX_CACHE, _FREED = 0.4, 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudgets:
    """How many bytes the parts of a run may take that can be cut. Less costs time and changes no number.

    Attributes:
        layer_moments: second moments of the layers that are measured together. Less means more passes over
            the samples.
        group_moments: the same where channel groups are measured; a group needs all of its readers at once.
        replay: activations from which measured divergences start at a layer. Less means longer forwards.
        prefix_cache: activations that evaluations of scores share. Less means longer forwards.
        fits: forwards of both networks that are paused at a layer, and its fit. Where they would take more,
            forwards run one after the other, from the start for every layer.
        freed: memory that has come and gone before it is given back to the system. Less would cost a call for
            every small layer, more would let the peaks of several layers add up.
    """

    layer_moments: int
    group_moments: int
    replay: int
    prefix_cache: int
    fits: int
    freed: int


def budgets_within(n_bytes: int, *, fits: int) -> MemoryBudgets:
    """Budgets that share so many bytes.

    Args:
        n_bytes: what is left for all that can be cut; 0 cuts everything as finely as possible.
        fits: what is left for paused forwards and fits.

    Returns:
        The budgets.
    """
    return MemoryBudgets(
        layer_moments=int(_LAYER_MOMENTS * n_bytes),
        group_moments=int(_GROUP_MOMENTS * n_bytes),
        replay=int(_REPLAY * n_bytes),
        prefix_cache=int(_PREFIX_CACHE * n_bytes),
        fits=fits,
        freed=int(_FREED * n_bytes),
    )


def moment_bytes(spec: LayerSpec, n_samples: int | None = None) -> int:
    """Memory that the second moments of a layer's inputs take: a matrix for each group, or float32 rows.

    Args:
        spec: the layer.
        n_samples: how many samples there are; None for as many as are of use.
    """
    width, block = row_width(spec), block_width(spec)
    n_rows = _stored_rows(spec, n_samples)
    # What a recurrent layer gives has moments, too.
    states = _FLOAT64 * spec.calls[0].output_shape[-1] ** 2 if spec.is_recurrent and spec.calls else 0
    if n_rows:
        return _FLOAT32 * n_rows * width + states
    if is_wide(spec):
        # With rows that wait until they are summed: a quarter as many as columns of one group.
        return _FLOAT32 * width * (block + block // 4) + states
    return _FLOAT64 * width * block + states


def working_bytes(spec: LayerSpec, n_samples: int | None = None) -> int:
    """Memory that comes and goes while a layer is decomposed, about.

    The factors were observed on layers of 2,000 to 5,000 columns.

    Args:
        spec: the layer.
        n_samples: as in ``moment_bytes``.
    """
    width, n_outputs = row_width(spec), row_view(spec).n_outputs
    n_rows = _stored_rows(spec, n_samples)
    moments = 2 * n_rows * (width + n_rows) if n_rows else 5 * width * block_width(spec)
    # Weights as they are, weighted and fitted; roots of the output metric.
    number = _FLOAT32 if n_outputs * width > MAX_EXACT_NUMBERS else _FLOAT64
    metric = min(n_outputs, MAX_METRIC_WIDTH) ** 2
    return _FLOAT64 * (moments + 3 * metric) + number * 4 * n_outputs * width


def fitting_bytes(spec: LayerSpec, n_samples: int | None = None) -> int:
    """Memory that comes and goes while a layer is fitted, about: rows of both networks, and moments.

    Args:
        spec: the layer.
        n_samples: as in ``moment_bytes``.
    """
    view = row_view(spec)
    n_rows = row_cap(spec) if n_samples is None else rows_available(spec, n_samples)
    rows = _FLOAT32 * n_rows * (view.n_columns + 2 * view.n_outputs)
    # Sums, and the moments that are made of them.
    moments = 2 * moment_bytes(spec, n_samples)
    return min(rows, SAMPLING.clipped_rows) + moments + working_bytes(spec, n_samples)


def _stored_rows(spec: LayerSpec, n_samples: int | None) -> int:
    """Rows that are stored in place of their moments; 0 for none."""
    if n_samples is None:
        return row_cap(spec) if keeps_rows(spec) else 0
    n_rows = rows_available(spec, n_samples)
    # Of fewer rows than half as many as columns no moments are summed.
    return n_rows if keeps_rows(spec) or n_rows <= block_width(spec) // 2 else 0


def clipped_row_bytes(n_columns: int, n_outputs: int) -> int:
    """Memory of one row stored for a fit to clipped outputs: inputs, wanted outputs, offsets; float32.

    Args:
        n_columns: numbers in the row of inputs.
        n_outputs: of the layer.
    """
    return _FLOAT32 * (n_columns + 2 * n_outputs)
