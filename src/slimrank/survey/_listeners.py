# SPDX-License-Identifier: Apache-2.0
"""Who hears of every event of a run: a caller's function, TensorBoard."""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from slimrank._errors import MissingPackageError, OptionError
from slimrank._progress import Event, Listener
from slimrank.files import check_folder

# Keys of an event that are no figures of it.
_NOT_FIGURES = ("time", "total")


class _Writer(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def flush(self) -> None: ...


def listeners_of(
    callback: Callable[[Event], object] | None, log_dir: str | os.PathLike[str] | None
) -> tuple[Listener, ...]:
    """The listeners that a caller asked for.

    Args:
        callback: called with every event, a dict; None for none.
        log_dir: of TensorBoard's files; None for none.

    Returns:
        Both, where they are given.

    Raises:
        OptionError: ``callback`` cannot be called.
        MissingPackageError: TensorBoard is not installed.
        FileError: the folder of ``log_dir`` is not there.
    """
    found: list[Listener] = []
    if callback is not None:
        if not callable(callback):
            raise OptionError(
                f"callback is a {type(callback).__name__}; give a function of one event, which is a dict"
            )
        called = callback

        def tell(event: Event) -> None:
            called(event)

        found.append(tell)
    if log_dir is not None:
        found.append(_TensorBoard(log_dir))
    return tuple(found)


class _TensorBoard:
    """Writes the figures of events as scalars, named after event and phase or layer."""

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        check_folder(log_dir, "log_dir")
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise MissingPackageError(
                "log_dir= needs tensorboard, which is not installed: pip install 'slimrank[tensorboard]'"
            ) from error
        self._writer: _Writer = module.SummaryWriter(os.fspath(log_dir))
        self._steps: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Writes what is a figure in an event."""
        subject = event.get("layer") or event.get("phase") or ""
        for key, value in event.items():
            if key in _NOT_FIGURES or isinstance(value, bool | str) or value is None:
                continue
            name = "/".join(part for part in (str(event["event"]), str(subject), key) if part)
            self._steps[name] = self._steps.get(name, -1) + 1
            self._writer.add_scalar(name, float(value), self._steps[name])
        if event["event"] != "step":
            self._writer.flush()
