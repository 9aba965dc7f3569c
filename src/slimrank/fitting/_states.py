# SPDX-License-Identifier: Apache-2.0
"""Recurrent matrices fitted to the hidden units that stay."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from slimrank.calibrate import collect_moments, states_of
from slimrank.cost import stays
from slimrank.fitting._data import Data
from slimrank.linalg import Moments, narrowed_weight, ridge_of, times_vector
from slimrank.plan import Step
from slimrank.records import ChannelMap, Kept


def state_fits(
    original: nn.Module, channels: ChannelMap, kept: Kept, moments: Mapping[str, Moments]
) -> dict[str, Tensor]:
    """What the recurrent matrices of layers become that lose hidden units, and their biases.

    What such a matrix reads depends on itself, so it is fitted to the states of the original: the units that
    stay take over what the others told of the next step, and to the next layer of the module.

    Args:
        original: not slimmed.
        channels: of it.
        kept: what is slimmed: group -> units that stay.
        moments: of the states of the original, under ``states_of``; layers that are missing stay as they are.

    Returns:
        Float64, without the rows and columns that go, by the name of the parameter.
    """
    fits: dict[str, Tensor] = {}
    for name, layer in original.named_modules():
        if not isinstance(layer, nn.RNNBase):
            continue
        for role, end, inputs in _readers(layer, name, moments):
            tensor = channels.tensors.get(f"{name}.weight_{role}{end}")
            staying = {} if tensor is None else stays(tensor, kept)
            if 1 in staying:
                rows = torch.from_numpy(staying[0]) if 0 in staying else None
                new = _fitted(layer, f"{role}{end}", rows, torch.from_numpy(staying[1]), inputs)
                fits |= {f"{name}.{leaf}": values for leaf, values in new}
    return fits


def _readers(
    layer: nn.RNNBase, name: str, moments: Mapping[str, Moments]
) -> Iterator[tuple[str, str, Moments]]:
    """Matrices that read states: what they do, the end of their names, and moments of what they read."""
    for number in range(layer.num_layers):
        own, below = (moments.get(states_of(name, index)) for index in (number, number - 1))
        for direction, end in enumerate(("", "_reverse") if layer.bidirectional else ("",)):
            ending = f"_l{number}{end}"
            if own is not None:
                width = layer.get_parameter(f"weight_hh{ending}").shape[1]
                yield "hh", ending, own.block(torch.arange(width) + direction * width)
            if below is not None:
                yield "ih", ending, below


def states_in(step: Step, data: Data) -> Mapping[str, Moments]:
    """Moments of the states of the layers that lose hidden units in a step, over the fit samples.

    Args:
        step: of a plan.
        data: what fits draw on.

    Returns:
        Moments as ``state_fits`` takes them; no pass is made where no layer loses any.
    """
    specs = {
        index: spec
        for index, spec in enumerate(step.structure.layers.values())
        if spec.has_states
        and spec.calls
        and (tensor := step.structure.channels.tensors.get(f"{spec.name}.weight_hh_l0")) is not None
        and 1 in stays(tensor, step.groups)
    }
    if not specs:
        return {}
    return collect_moments(data.original, data.feed, specs, seed=data.seed, advance=lambda _n: None)


def _fitted(
    layer: nn.RNNBase, key: str, rows: Tensor | None, columns: Tensor, inputs: Moments
) -> Iterator[tuple[str, Tensor]]:
    """One matrix, and its bias, by their names in the layer."""
    weight, bias = (_values(layer, f"{leaf}_{key}", rows) for leaf in ("weight", "bias"))
    if weight is None:
        return
    # Without a bias nothing takes up a mean that moves.
    about = inputs if bias is not None else inputs.about_zero()
    ridge = ridge_of(inputs.n_rows, len(columns))
    narrow, _ = narrowed_weight(weight, about, columns, ridge=ridge, n_groups=1)
    yield f"weight_{key}", narrow
    if bias is not None:
        mean = inputs.mean
        kept_mean = times_vector(narrow, mean[columns.to(mean.device)])
        yield f"bias_{key}", bias + times_vector(weight, mean) - kept_mean


def _values(layer: nn.RNNBase, key: str, rows: Tensor | None) -> Tensor | None:
    """A parameter in float64, the rows that stay."""
    parameter = layer._parameters.get(key)
    if parameter is None:
        return None
    values = parameter.detach().double()
    return values if rows is None else values[rows.to(values.device)]
