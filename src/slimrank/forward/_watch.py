# SPDX-License-Identifier: Apache-2.0
"""Which modules a forward calls, with what, and what comes out: hooks that come off again."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

Enter = Callable[[str, tuple[object, ...], Mapping[str, object]], None]
Leave = Callable[[str, tuple[object, ...], Mapping[str, object], object], object]


@contextlib.contextmanager
def watch_modules(
    modules: Iterable[tuple[str, nn.Module]],
    *,
    enter: Enter | None = None,
    leave: Leave | None = None,
    always_leave: bool = False,
) -> Iterator[None]:
    """Calls a function before and after every call of some modules, while the context lasts.

    A module has hooks only for the functions that are given: torch runs its fused layers only where it finds
    no hooks.

    Args:
        modules: (name, module) pairs, such as ``model.named_modules()``.
        enter: ``enter(name, args, kwargs)`` runs before the module; what it raises ends the forward.
        leave: ``leave(name, args, kwargs, output)`` runs after the module; what it returns replaces the
            output, unless it is None.
        always_leave: ``leave`` also runs where the module raises an error; the output is None then.

    Yields:
        Nothing; the hooks are removed at the end, also after an error.
    """
    handles: list[RemovableHandle] = []
    try:
        for name, module in modules:
            if enter is not None:
                handles.append(module.register_forward_pre_hook(_pre_hook(name, enter), with_kwargs=True))
            if leave is not None:
                hook = _hook(name, leave)
                handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always_leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_input(args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """The first argument of a call, by position or else by keyword; None where there is none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _pre_hook(name: str, enter: Enter) -> Callable[..., None]:
    # Its own function, so that each hook keeps its name; and it returns None, since torch would take anything
    # else for new arguments.
    def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        enter(name, args, kwargs)

    return hook


def _hook(name: str, leave: Leave) -> Callable[..., object]:
    def hook(
        _module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> object:
        return leave(name, args, kwargs, output)

    return hook
