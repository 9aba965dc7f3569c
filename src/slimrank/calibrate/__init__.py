# SPDX-License-Identifier: Apache-2.0
"""Batches to second moments; the loss and the divergence."""

from slimrank.calibrate._agreement import measure_agreement
from slimrank.calibrate._chunks import Chunk, Collecting, count_passes, fit_together, moment_chunks
from slimrank.calibrate._dependence import layers_that_count
from slimrank.calibrate._divergence import divergence, measure_divergence, reference_outputs
from slimrank.calibrate._feed import (
    Feed,
    bytes_in_graph,
    checked_batches,
    evenly_spaced,
    first_batch,
    open_feed,
    part_of,
)
from slimrank.calibrate._gradients import (
    GRADIENT_ROWS,
    SAMPLES_DRAWN_IN_FULL,
    GradientOptions,
    collect_gradients,
)
from slimrank.calibrate._likelihood import (
    choose_likelihood,
    read_likelihood,
    readings_tried,
)
from slimrank.calibrate._moments import collect_moments, layer_seed, rows_wanted, states_of
from slimrank.calibrate._output_model import Likelihood, OutputModel
from slimrank.calibrate._own_loss import OwnLossFn, check_loss
from slimrank.calibrate._rows import (
    draw_positions,
    input_rows,
    is_mask_of,
    n_positions,
    output_rows,
    output_rows_at,
    token_mask,
)

__all__ = [
    "GRADIENT_ROWS",
    "SAMPLES_DRAWN_IN_FULL",
    "Chunk",
    "Collecting",
    "Feed",
    "GradientOptions",
    "Likelihood",
    "OutputModel",
    "OwnLossFn",
    "bytes_in_graph",
    "check_loss",
    "checked_batches",
    "choose_likelihood",
    "collect_gradients",
    "collect_moments",
    "count_passes",
    "divergence",
    "draw_positions",
    "evenly_spaced",
    "first_batch",
    "fit_together",
    "input_rows",
    "is_mask_of",
    "layer_seed",
    "layers_that_count",
    "measure_agreement",
    "measure_divergence",
    "moment_chunks",
    "n_positions",
    "open_feed",
    "output_rows",
    "output_rows_at",
    "part_of",
    "read_likelihood",
    "readings_tried",
    "reference_outputs",
    "rows_wanted",
    "states_of",
    "token_mask",
]
