# SPDX-License-Identifier: Apache-2.0
"""A training run in a directory: written after every epoch, continued after a kill."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank._errors import FileError, OptionError, StudyError
from slimrank.files import Json, Store, check_format, spelled_number
from slimrank.tensors import read_tensors, write_tensors

# Raised when a file changes its meaning.
FORMAT = 1
# What the run is of, written first; where it stands, written after every epoch.
_RUN, _STATE = "recover.json", "recover-state.json"
# Entries of an optimiser's state that JSON holds.
_NUMBERS = (bool, int, float, type(None))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """Where a run stands after an epoch.

    Attributes:
        model: parameters and buffers by name, as training goes on with them.
        best: those with the lowest held-out loss so far.
        tensors: state of the optimiser, by "index.name" of the parameter and the entry.
        numbers: the entries of that state that are no tensors.
        facts: losses and history, as the loop wrote them.
    """

    model: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Json]
    facts: Mapping[str, Json]


def stored_run(root: str | os.PathLike[str] | None) -> Mapping[str, Json]:
    """What the run in a directory is of, by topic; empty where there is none."""
    if root is None or not Store(root).has(_RUN):
        return {}
    return Store(root).read_json(_RUN)


class Checkpoint:
    """The directory of one run.

    Args:
        root: the directory; a study may live in it as well.
        fingerprint: what the run is of, by topic.

    Raises:
        StudyError: the directory holds another run, or one of another format.
    """

    def __init__(self, root: str | os.PathLike[str], fingerprint: Mapping[str, str]) -> None:
        self._store = Store(root)
        if not self._store.has(_RUN):
            self._store.write_json(_RUN, {"format": str(FORMAT), **fingerprint})
            return
        stored = self._store.read_json(_RUN)
        check_format(
            spelled_number(stored.get("format")),
            FORMAT,
            where=str(self._store.root / _RUN),
            advice="give another run_dir or delete it",
            error=StudyError,
        )
        differing = [key for key, value in fingerprint.items() if stored.get(key) != value]
        if differing:
            raise StudyError(
                f"{self._store.root} holds a training run of other {' and '.join(differing)}; "
                "give another run_dir or delete it"
            )

    def load(self) -> TrainingState | None:
        """Where the run stood.

        Returns:
            The state after its last whole epoch; None where there is none.

        Raises:
            FileError: a file is missing, truncated or altered.
        """
        if not self._store.has(_STATE):
            return None
        entries = self._store.read_json(_STATE)
        name, numbers, facts = (entries.get(key) for key in ("tensors", "numbers", "facts"))
        if not isinstance(name, str) or not isinstance(numbers, dict) or not isinstance(facts, dict):
            raise FileError(f"{self._store.root / _STATE} was altered; delete the directory and run again")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for key, tensor in read_tensors(self._store.root / name).items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        return TrainingState(
            model=parts["model"],
            # Not written twice where the last epoch is the best one.
            best=parts["best"] or parts["model"],
            tensors=parts["optimizer"],
            numbers=numbers,
            facts=facts,
        )

    def store(self, state: TrainingState, epoch: int) -> None:
        """Writes the state after an epoch; the file of the epoch before is removed.

        Args:
            state: the state.
            epoch: its number.

        Raises:
            FileError: it cannot be written.
        """
        old = self._store.read_json(_STATE).get("tensors") if self._store.has(_STATE) else None
        # Another name in every epoch, so that a kill leaves the last whole state.
        name = f"recover-{epoch}.safetensors"
        parts = {"model": state.model, "optimizer": state.tensors}
        if state.best is not state.model:
            parts["best"] = state.best
        tensors = {f"{part}.{key}": tensor for part, named in parts.items() for key, tensor in named.items()}
        write_tensors(self._store.path_of(name), tensors)
        # The state names its tensors: until it is replaced, the epoch before holds.
        self._store.write_json(
            _STATE, {"tensors": name, "numbers": dict(state.numbers), "facts": dict(state.facts)}
        )
        if isinstance(old, str) and old != name:
            self._store.remove(old)


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, shared ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers, on their device."""
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model)}


def restore_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts a snapshot back, into the same tensors.

    Args:
        model: changed in place.
        state: from ``snapshot``.
    """
    with torch.no_grad():
        for name, tensor in tensors_of(model):
            if name in state and tensor.shape == state[name].shape:
                tensor.copy_(state[name])
            elif name in state:
                # A buffer that a forward exchanged for one of another size.
                owner, _, key = name.rpartition(".")
                model.get_submodule(owner)._buffers[key] = state[name].to(tensor.device, copy=True)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """State of an optimiser without pickle.

    Args:
        optimizer: any whose state is tensors and numbers.

    Returns:
        Tensors, and the rest, by "index.name".

    Raises:
        OptionError: its state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Json] = {}
    states: Mapping[int, Mapping[str, object]] = optimizer.state_dict()["state"]
    for index, entries in states.items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            elif isinstance(value, _NUMBERS):
                numbers[f"{index}.{name}"] = value
            else:
                raise OptionError(
                    f"{type(optimizer).__name__} keeps {name} as a {type(value).__name__}, which run_dir= "
                    "cannot hold; take another optimizer, or leave run_dir out"
                )
    return tensors, numbers


def load_optimizer_(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Json]
) -> None:
    """Gives a fresh optimiser the state of an earlier one.

    Args:
        optimizer: made the same way, over the same parameters.
        tensors: from ``optimizer_state``.
        numbers: from ``optimizer_state``.
    """
    states: dict[int, dict[str, object]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
