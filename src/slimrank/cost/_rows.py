# SPDX-License-Identifier: Apache-2.0
"""Rows that a layer's statistics are made of: how wide, how many, stored or summed."""

from slimrank.cost._row_view import row_view
from slimrank.records import LayerSpec

# Up to here a (D, D) float64 matrix of moments takes at most 0.5 GB; of wider layers a few rows are stored.
MAX_GRAM_WIDTH = 8192
# Numbers in a weight up to which it is computed with in float64. Of larger ones each copy would take another
# quarter of a gigabyte and more, and each product minutes.
MAX_EXACT_NUMBERS = 2**25
# Up to here second moments of output gradients are kept as a (C_out, C_out) matrix; of more outputs, such as
# scores of a vocabulary, only the diagonal: for softmax over many classes it is all but the whole.
MAX_METRIC_WIDTH = 8192
# Above so many columns decompositions are most of the work, and are done with less care where errors stay
# about the same.
_NARROW_COLUMNS = 1024
# More rows make the moments more precise and take longer to sum; ten per column is what they need.
_MAX_ROWS_PER_COLUMN = 20
# Narrow layers get more than that, since their rows take next to no time.
_MIN_ROWS = 16384
# Of wide layers, since the rows themselves are stored: with 8192 columns these take 0.13 GB in float32.
_MAX_STORED_ROWS = 4096


def row_width(spec: LayerSpec) -> int:
    """Columns D of the rows that a layer sees: C_in x kernel, or in_features; C_in where it is transposed."""
    return row_view(spec).n_columns


def block_width(spec: LayerSpec) -> int:
    """Columns whose moments are kept together: D, of a grouped convolution those that one group reads."""
    return row_width(spec) // spec.groups


def is_wide(spec: LayerSpec) -> bool:
    """Whether decompositions of a layer's moments take most of the time that it takes."""
    return block_width(spec) > _NARROW_COLUMNS


def keeps_rows(spec: LayerSpec) -> bool:
    """Whether rows are stored instead of their moments, which would be too large."""
    return block_width(spec) > MAX_GRAM_WIDTH


def row_cap(spec: LayerSpec) -> int:
    """Rows that are used at most: twice the ten per column that the statistics need."""
    return _MAX_STORED_ROWS if keeps_rows(spec) else max(_MIN_ROWS, _MAX_ROWS_PER_COLUMN * block_width(spec))


def rows_available(spec: LayerSpec, n_samples: int) -> int:
    """Number of rows that some samples give for a layer, up to those that are used.

    Args:
        spec: the layer.
        n_samples: how many samples there are.

    Returns:
        The count, from the shapes of one sample.
    """
    return min(row_cap(spec), row_view(spec).n_positions * n_samples)
