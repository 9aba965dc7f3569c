# SPDX-License-Identifier: Apache-2.0
"""Rows that a layer's statistics are made of: how wide, how many, kept or summed."""

from math import prod

from slimrank.records import LayerSpec

MAX_GRAM_WIDTH = 8192
_ROWS_PER_COLUMN = 20
_MIN_ROWS = 16384
_MAX_KEPT_ROWS = 4096


def row_width(spec: LayerSpec) -> int:
    """Columns D of the rows that a layer sees: C_in x kernel, or in_features."""
    return prod(spec.weight_shape[1:])


def keeps_rows(spec: LayerSpec) -> bool:
    """Whether rows are kept instead of their (D, D) moments, since those would be too large."""
    return row_width(spec) > MAX_GRAM_WIDTH


def row_cap(spec: LayerSpec) -> int:
    """Rows that are used at most: twice the ten per column that the statistics need."""
    return _MAX_KEPT_ROWS if keeps_rows(spec) else max(_MIN_ROWS, _ROWS_PER_COLUMN * row_width(spec))


def moment_bytes(spec: LayerSpec) -> int:
    """Memory that the second moments of a layer's inputs hold: a float64 matrix, or float32 rows."""
    width = row_width(spec)
    return row_cap(spec) * width * 4 if keeps_rows(spec) else width * width * 8


def working_bytes(spec: LayerSpec) -> int:
    """Memory that comes and goes while a layer is decomposed, about: four float64 matrices of its moments."""
    return 32 * row_width(spec) ** 2


def rows_available(spec: LayerSpec, n_samples: int) -> int:
    """Rows of a layer that so many samples give, up to those that are used.

    Args:
        spec: the layer.
        n_samples: how many samples.

    Returns:
        The count, from the shapes of one sample.
    """
    per_sample = spec.macs // max(1, row_width(spec) * spec.weight_shape[0])
    return min(row_cap(spec), per_sample * n_samples)
