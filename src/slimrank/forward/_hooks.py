# SPDX-License-Identifier: Apache-2.0
"""Hooks that come off again."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

Tap = Callable[[str, int, Tensor, Tensor], Tensor | None]


@contextlib.contextmanager
def tap_layers(model: nn.Module, names: Sequence[str], tap: Tap) -> Iterator[Counter[str]]:
    """Calls a function on input and output of layers while the context lasts.

    Args:
        model: the tree.
        names: layers.
        tap: ``tap(name, call, x, y)``; a tensor that it returns takes the place of the output.

    Yields:
        Calls so far by name; clear it before every forward.
    """
    calls: Counter[str] = Counter()
    handles = []
    try:
        for name in names:

            def hook(
                _module: nn.Module,
                args: tuple[object, ...],
                kwargs: dict[str, object],
                output: object,
                name: str = name,
            ) -> object:
                x = args[0] if args else kwargs.get("input")
                call = calls[name]
                calls[name] += 1
                if isinstance(x, Tensor) and isinstance(output, Tensor):
                    return tap(name, call, x, output)
                return None

            handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
