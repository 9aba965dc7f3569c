# SPDX-License-Identifier: Apache-2.0
"""Batches to second moments; the loss and the divergence."""

from slimrank.calibrate._chunks import Chunk, Collecting, moment_chunks
from slimrank.calibrate._divergence import measure_divergence, read_likelihood, reference_outputs
from slimrank.calibrate._feed import Feed, evenly_spaced, first_batch, open_feed
from slimrank.calibrate._gradients import GradientOptions, collect_gradients
from slimrank.calibrate._likelihood import (
    Likelihood,
    LikelihoodChoice,
    OutputModel,
    choose_likelihood,
    divergence,
)
from slimrank.calibrate._moments import collect_moments, layer_seed, rows_wanted
from slimrank.calibrate._rows import draw_positions, input_rows, n_positions, output_rows, token_mask

__all__ = [
    "Chunk",
    "Collecting",
    "Feed",
    "GradientOptions",
    "Likelihood",
    "LikelihoodChoice",
    "OutputModel",
    "choose_likelihood",
    "collect_gradients",
    "collect_moments",
    "divergence",
    "draw_positions",
    "evenly_spaced",
    "first_batch",
    "input_rows",
    "layer_seed",
    "measure_divergence",
    "moment_chunks",
    "n_positions",
    "open_feed",
    "output_rows",
    "read_likelihood",
    "reference_outputs",
    "rows_wanted",
    "token_mask",
]
