# SPDX-License-Identifier: Apache-2.0
"""How much a forward holds at each layer: what some later module may still read."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from slimrank.forward._batch import Batch, named_tensors
from slimrank.forward._run import run
from slimrank.forward._watch import watch_modules


def alive_bytes(model: nn.Module, batch: Batch, layers: Collection[str]) -> dict[str, int]:
    """Memory of the activations that are alive when a forward reaches layers.

    Tensors count that some module has read or given and that something still refers to: shortcuts and skip
    connections count as long as they wait. What functions make in between, and no module reads, does not.

    Args:
        model: a private copy in eval mode.
        batch: what to run.
        layers: names to look at.

    Returns:
        Bytes by layer, at its first call, its output and the forward's copy of the batch included; layers
        that are not called are left out. The model's own tensors do not count.
    """
    wanted = frozenset(layers)
    own = {_key(tensor) for tensor in _own_tensors(model)}
    held: dict[int, tuple[StorageWeakRef, int]] = {}
    found: dict[str, int] = {}

    def see(value: object) -> None:
        for _, tensor in named_tensors(value):
            if tensor.layout == torch.strided and _key(tensor) not in own:
                storage = tensor.untyped_storage()
                held[_key(tensor)] = (StorageWeakRef(storage), storage.nbytes())

    def enter(_name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        see((args, kwargs))

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> None:
        see(output)
        if name in wanted and name not in found:
            for key in [key for key, (reference, _) in held.items() if reference.expired()]:
                del held[key]
            found[name] = sum(n_bytes for _, n_bytes in held.values())

    with torch.no_grad(), watch_modules(model.named_modules(), enter=enter, leave=leave):
        run(model, batch)
    return found


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are there before a forward."""
    return (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.layout == torch.strided)


def _key(tensor: Tensor) -> int:
    """Of the memory that a tensor lies in; not given again while a weak reference to it is kept."""
    return int(tensor.untyped_storage()._cdata)
