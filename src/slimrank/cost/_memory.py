# SPDX-License-Identifier: Apache-2.0
"""Memory that the statistics of a layer take, and the one table of what the parts of a run may take."""

from dataclasses import dataclass

from slimrank.cost._row_view import row_view
from slimrank.cost._rows import keeps_rows, row_cap, row_width
from slimrank.records import LayerSpec

# Bytes of one number.
_FLOAT32, _FLOAT64 = 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudgets:
    """How many bytes the parts of a run may take beside the model, about. More of each saves time.

    Attributes:
        graph: activations that one micro-batch keeps for its backward pass. Less makes micro-batches smaller;
            rows are drawn for each micro-batch, so this one changes numbers.
        layer_moments: second moments of the layers that are measured together. Less means more passes over
            the samples.
        group_moments: the same where channel groups are measured; more, since a group needs all of its
            readers at once.
        live_activations: what is alive at one depth of both networks while layers are fitted. Less means fits
            to fewer samples, so this one changes numbers; the note about it says 2 GB.
        clipped_rows: rows of one layer that are stored for the fit to its clipped outputs.
            Less means fewer rows there, so this one changes numbers, too.
        replay: activations from which measured divergences start at a layer. Less means longer forwards.
        outputs: outputs of the model that are stored, as references or to read what they mean. Less means
            fewer samples for measured damages, so this one changes numbers, too.
        prefix_cache: activations that evaluations of scores share. Less means longer forwards.
        freed: memory that has come and gone before it is given back to the system. Less would cost a call for
            every small layer, more would let the peaks of several layers add up.
    """

    graph: int = 1_000_000_000
    layer_moments: int = 600_000_000
    group_moments: int = 900_000_000
    live_activations: int = 2_000_000_000
    clipped_rows: int = 250_000_000
    replay: int = 500_000_000
    outputs: int = 250_000_000
    prefix_cache: int = 1_000_000_000
    freed: int = 96_000_000


# The budgets of every run; its attributes say what each of them trades.
MEMORY = MemoryBudgets()


def moment_bytes(spec: LayerSpec) -> int:
    """Memory that the second moments of a layer's inputs take: a float64 matrix, or float32 rows."""
    width = row_width(spec)
    return _FLOAT32 * row_cap(spec) * width if keeps_rows(spec) else _FLOAT64 * width**2


def working_bytes(spec: LayerSpec) -> int:
    """Memory that comes and goes while a layer is decomposed, about: four float64 matrices of its moments."""
    return 4 * _FLOAT64 * row_width(spec) ** 2


def fitting_bytes(spec: LayerSpec) -> int:
    """Memory that comes and goes while a layer is fitted, about: rows of both networks, and moments."""
    view = row_view(spec)
    return _FLOAT32 * row_cap(spec) * (view.n_columns + 2 * view.n_outputs) + working_bytes(spec)


def clipped_row_bytes(n_columns: int, n_outputs: int) -> int:
    """Memory of one row stored for a fit to clipped outputs: inputs, wanted outputs, offsets; float32.

    Args:
        n_columns: numbers in the row of inputs.
        n_outputs: of the layer.
    """
    return _FLOAT32 * (n_columns + 2 * n_outputs)


def live_bytes(n_numbers: int) -> int:
    """Memory of one sample that is alive at one depth of two networks.

    Args:
        n_numbers: numbers in the largest input of a layer. Each network was observed to hold about four such
            inputs, with some reserve.
    """
    return 2 * 4 * _FLOAT32 * n_numbers
