# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers opened where their input matrices end, so that gradients can be read there."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.records import LayerSpec

# The module that a layer has inside while it is open.
_GATES = "gates"


def _opened(layer: nn.RNNBase) -> tuple[nn.Linear, nn.RNNBase]:
    """A recurrent layer as the linear one that it begins with, and what becomes of that one's outputs."""
    weights, biases = ([*_inputs(layer, role).values()] for role in ("weight_ih", "bias_ih"))
    weight = torch.cat([part.detach() for part in weights])
    gates = nn.Linear(weight.shape[1], len(weight), bias=bool(biases), device="meta")
    gates.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        gates.bias = nn.Parameter(torch.cat([part.detach() for part in biases]), requires_grad=False)
    rest = copy.deepcopy(layer)
    # cuDNN only has gradients in training, where all that differs is dropout.
    rest.train()
    rest.dropout = 0.0
    rest.input_size = len(weight)
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    for key, part in zip(_inputs(layer, "weight_ih"), identity.chunk(len(weights)), strict=True):
        setattr(rest, key, nn.Parameter(part.clone(), requires_grad=False))
    for key, bias in _inputs(layer, "bias_ih").items():
        setattr(rest, key, nn.Parameter(torch.zeros_like(bias), requires_grad=False))
    rest.requires_grad_(requires_grad=False)
    return gates, rest


@contextlib.contextmanager
def opened(model: nn.Module, specs: Sequence[LayerSpec]) -> Iterator[Mapping[str, LayerSpec]]:
    """Recurrent layers are opened while the context lasts: they stay where they are, and run in two parts.

    Args:
        model: in eval mode; what is changed in its modules is put back at the end.
        specs: the layers that matter; those that are not recurrent stay.

    Yields:
        The layers by the name of the module whose outputs are those of their matrix.
    """
    taps: dict[str, LayerSpec] = {}
    changed: list[nn.Module] = []
    try:
        for spec in specs:
            layer = model.get_submodule(spec.name)
            if not spec.is_recurrent or not isinstance(layer, nn.RNNBase):
                taps[spec.name] = spec
                continue
            taps[f"{spec.name}.{_GATES}"] = spec
            gates, rest = _opened(layer)

            def forward(
                input: Tensor, hx: object = None, *, gates: nn.Module = gates, rest: nn.Module = rest
            ) -> object:
                return rest(gates(input), hx)

            changed.append(layer)
            layer._modules[_GATES] = gates
            # Beside its class: the caller's code may ask the layer what it is.
            vars(layer)["forward"] = forward
        yield taps
    finally:
        for layer in changed:
            del layer._modules[_GATES]
            del vars(layer)["forward"]


def _inputs(layer: nn.RNNBase, role: str) -> dict[str, Tensor]:
    """Parameters of the first layer of a recurrent one, by their names."""
    found = {key: layer._parameters.get(key) for key in (f"{role}_l0", f"{role}_l0_reverse")}
    return {key: parameter for key, parameter in found.items() if parameter is not None}
