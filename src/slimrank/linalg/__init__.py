# SPDX-License-Identifier: Apache-2.0
"""Tensors in, tensors out: whitened decompositions, least squares, alternating refinement."""

from slimrank.linalg._clipping import Clipping, has_usable_gain
from slimrank.linalg._least_squares import (
    RidgedInverse,
    diagonal_blocks,
    least_squares_weight,
    narrowed_weight,
)
from slimrank.linalg._moments import Moments, MomentSums, gram, ridge_of
from slimrank.linalg._obs import MAX_EXACT_COLUMNS, Consumer, Removal, removal_errors, removal_order
from slimrank.linalg._output_basis import (
    has_leading_directions,
    leading_directions,
    output_basis,
    project_pair,
)
from slimrank.linalg._psd import (
    cholesky_psd,
    roots_of,
    square_root,
    square_roots,
    times_root,
    times_vector,
    weighted_by,
)
from slimrank.linalg._split_pair import (
    RidgedRows,
    Split,
    SplitFactors,
    SplitMoments,
    fit_split,
    initial_first_factor,
    nested_errors,
    refine_split,
)
from slimrank.linalg._tucker import TuckerFactors, fit_tucker, tucker_errors

__all__ = [
    "MAX_EXACT_COLUMNS",
    "Clipping",
    "Consumer",
    "MomentSums",
    "Moments",
    "Removal",
    "RidgedInverse",
    "RidgedRows",
    "Split",
    "SplitFactors",
    "SplitMoments",
    "TuckerFactors",
    "cholesky_psd",
    "diagonal_blocks",
    "fit_split",
    "fit_tucker",
    "gram",
    "has_leading_directions",
    "has_usable_gain",
    "initial_first_factor",
    "leading_directions",
    "least_squares_weight",
    "narrowed_weight",
    "nested_errors",
    "output_basis",
    "project_pair",
    "refine_split",
    "removal_errors",
    "removal_order",
    "ridge_of",
    "roots_of",
    "square_root",
    "square_roots",
    "times_root",
    "times_vector",
    "tucker_errors",
    "weighted_by",
]
