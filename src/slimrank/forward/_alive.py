# SPDX-License-Identifier: Apache-2.0
"""How much a forward holds at each layer: what waits there for something later."""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from slimrank.forward._batch import Batch, tensor_storages
from slimrank.forward._run import run
from slimrank.forward._watch import watch_modules


def alive_bytes(model: nn.Module, batch: Batch, layers: Collection[str]) -> dict[str, int]:
    """Memory of the activations that are alive behind layers.

    All that operations made counts as long as something refers to it: shortcuts, and features that wait for
    a late layer, wherever they were made. The forward's copy of the batch counts, weights do not.

    Args:
        model: a private copy in eval mode.
        batch: what to run.
        layers: names to look at.

    Returns:
        Bytes by layer, at the end of its first call; layers that are not called are left out.
    """
    made = _Made()
    found: dict[str, int] = {}

    def leave(name: str, _args: object, _kwargs: object, _output: object) -> None:
        found.setdefault(name, made.alive())

    watched = [(name, model.get_submodule(name)) for name in layers]
    with torch.no_grad(), watch_modules(watched, leave=leave), made:
        run(model, batch)
    return found


class _Made(TorchDispatchMode):
    """Notes the memory that operations make."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # An address is not given to other memory while a reference to it is kept.
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs an operation."""
        # A view of a weight, or one that is worked on in place, is none of what is made.
        known = {storage._cdata for storage in tensor_storages((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        for storage in tensor_storages(result):
            if storage._cdata not in known:
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self) -> int:
        """Bytes of what something still refers to."""
        self._held = {
            key: (reference, n_bytes)
            for key, (reference, n_bytes) in self._held.items()
            if not reference.expired()
        }
        return sum(n_bytes for _, n_bytes in self._held.values())
