# SPDX-License-Identifier: Apache-2.0
"""Recurrent layers opened where their input matrices end, so that gradients can be read there."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.records import LayerSpec


class _Opened(nn.Module):
    """A recurrent layer as the linear one that it begins with, and what becomes of that one's outputs."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        weights, biases = ([*_inputs(layer, role).values()] for role in ("weight_ih", "bias_ih"))
        weight = torch.cat([part.detach() for part in weights])
        self.gates = nn.Linear(weight.shape[1], len(weight), bias=bool(biases), device="meta")
        self.gates.weight = nn.Parameter(weight, requires_grad=False)
        if biases:
            bias = torch.cat([part.detach() for part in biases])
            self.gates.bias = nn.Parameter(bias, requires_grad=False)
        self.rest = copy.deepcopy(layer)
        # cuDNN only has gradients in training, where all that differs is dropout.
        self.rest.train()
        self.rest.dropout = 0.0
        self.rest.input_size = len(weight)
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        for key, part in zip(_inputs(layer, "weight_ih"), identity.chunk(len(weights)), strict=True):
            setattr(self.rest, key, nn.Parameter(part.clone(), requires_grad=False))
        for key, bias in _inputs(layer, "bias_ih").items():
            setattr(self.rest, key, nn.Parameter(torch.zeros_like(bias), requires_grad=False))
        self.rest.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor, hx: object = None) -> object:
        """What the layer gives."""
        return self.rest(self.gates(x), hx)


@contextlib.contextmanager
def opened(model: nn.Module, specs: Sequence[LayerSpec]) -> Iterator[Mapping[str, LayerSpec]]:
    """Recurrent layers are opened while the context lasts.

    Args:
        model: in eval mode; its modules are exchanged, and put back at the end.
        specs: the layers that matter; those that are not recurrent stay.

    Yields:
        The layers by the name of the module whose outputs are those of their matrix.
    """
    taps: dict[str, LayerSpec] = {}
    exchanged: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for spec in specs:
            layer = model.get_submodule(spec.name)
            if not spec.is_recurrent or not isinstance(layer, nn.RNNBase):
                taps[spec.name] = spec
                continue
            taps[f"{spec.name}.gates"] = spec
            new = _Opened(layer)
            for parent in list(model.modules()):
                for key, child in parent._modules.items():
                    if child is layer:
                        exchanged.append((parent, key, layer))
                        parent._modules[key] = new
        yield taps
    finally:
        for parent, key, layer in exchanged:
            parent._modules[key] = layer


def _inputs(layer: nn.RNNBase, role: str) -> dict[str, Tensor]:
    """Parameters of the first layer of a recurrent one, by their names."""
    found = {key: layer._parameters.get(key) for key in (f"{role}_l0", f"{role}_l0_reverse")}
    return {key: parameter for key, parameter in found.items() if parameter is not None}
