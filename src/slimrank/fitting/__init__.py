# SPDX-License-Identifier: Apache-2.0
"""Plan + model + data -> new model: layers fitted in execution order to what reaches them."""

from slimrank.fitting._alive_batches import AliveBatches, forward_size
from slimrank.fitting._apply import Applied, apply_plan, empty_replacement_in
from slimrank.fitting._data import Data, OnLayer, check_on_layer
from slimrank.fitting._journal import LayerFiles
from slimrank.fitting._layer_tasks import layer_tasks, scaled
from slimrank.fitting._seen import Seen
from slimrank.fitting._states import state_fits
from slimrank.fitting._stays import channels_left, what_stays

__all__ = [
    "AliveBatches",
    "Applied",
    "Data",
    "LayerFiles",
    "OnLayer",
    "Seen",
    "apply_plan",
    "channels_left",
    "check_on_layer",
    "empty_replacement_in",
    "forward_size",
    "layer_tasks",
    "scaled",
    "state_fits",
    "what_stays",
]
