# SPDX-License-Identifier: Apache-2.0
"""Hooks that come off again."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from slimrank.forward._watch import watch_modules

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

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> object:
        x = args[0] if args else kwargs.get("input")
        call = calls[name]
        calls[name] += 1
        # Recurrent layers give their states as well.
        y = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return None
        new = tap(name, call, x, y)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    with watch_modules(((name, model.get_submodule(name)) for name in names), leave=leave):
        yield calls
