# SPDX-License-Identifier: Apache-2.0
"""A recorded program as a module: its operations are called one by one; nothing in the file is code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, FileError, PlanError
from slimrank._names import listed
from slimrank.deploy._graph_values import DEVICE, check_arguments, function_named, value_from_json
from slimrank.deploy._outline import check_outline, filled, numbers_in, tensors_of
from slimrank.deploy._record_program import PROGRAM_FORMAT
from slimrank.files import Json, as_flag, as_integer, as_list, as_object, as_text, check_format

# Lists and objects within each other that a record may have; a graph has few, outputs seldom ten.
_MAX_DEPTH = 100


@dataclass(frozen=True, slots=True)
class _Result:
    """What an operation returned, as an argument of a later one."""

    index: int


@dataclass(frozen=True, slots=True)
class _Input:
    """An input tensor, as an argument."""

    index: int


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of the model, as an argument."""

    name: str


@dataclass(frozen=True, slots=True)
class _Device:
    """The device of the model, as an argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One operation.

    Attributes:
        function: that is called.
        args, kwargs: its arguments, with references.
        last_used: results that no later operation reads.
    """

    function: Callable[..., object]
    args: list[object]
    kwargs: dict[str, object]
    last_used: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _InputFacts:
    """An input tensor as it was recorded; the size None takes any number of samples."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        sizes = ", ".join("samples" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes}) {str(self.dtype).removeprefix('torch.')}"

    def takes(self, tensor: Tensor) -> bool:
        """Whether a tensor has this shape and dtype."""
        return (
            tensor.dtype == self.dtype
            and tensor.ndim == len(self.shape)
            and all(size in (None, found) for size, found in zip(self.shape, tensor.shape, strict=True))
        )


class _Program:
    """What a record says, apart from the module, whose tensors may have any names.

    Attributes:
        where: the file, for errors.
        is_trained: whether a parameter takes gradients, by name.
        needed: names of the tensors that its operations read.
        homes: module and attribute of each tensor, by name; filled by the module.

    Args:
        facts: of a recorded program.
        where: the file, for errors.

    Raises:
        FileError, PlanError, KeyError, TypeError, IndexError: they are of no recorded program.
    """

    def __init__(self, facts: Mapping[str, Json], where: str) -> None:
        self.where = where
        self.homes: dict[str, tuple[nn.Module, str]] = {}
        self._class, self._torch = as_text(facts["class"], where), as_text(facts["torch"], where)
        self._positional = [as_text(name, where) for name in as_list(facts["positional"], where)]
        self._keywords = [as_text(name, where) for name in as_list(facts["keywords"], where)]
        self._arguments = as_object(facts["arguments"], where)
        self._inputs = [_input_from_json(entry, where) for entry in as_list(facts["inputs"], where)]
        self._outputs = facts["outputs"]
        if sorted(numbers_in(self._arguments)) != list(range(len(self._inputs))):
            raise TypeError("its arguments are not its inputs")
        calls = [
            self._call_from_json(entry, index) for index, entry in enumerate(as_list(facts["nodes"], where))
        ]
        self._results = [self._argument(value, len(calls)) for value in as_list(facts["results"], where)]
        if not all(isinstance(value, _Result | _Input | _Stored) for value in self._results):
            raise TypeError("its results are not tensors of it")
        check_outline(self._outputs, len(self._results), where)
        self._calls = _with_last_used(calls, self._results)
        self.is_trained = {
            name: as_flag(flag, where) for name, flag in as_object(facts["parameters"], where).items()
        }
        self.needed = {
            value.name
            for call in self._calls
            for value in _flat([call.args, call.kwargs])
            if isinstance(value, _Stored)
        } | {value.name for value in _flat(self._results) if isinstance(value, _Stored)}

    def __str__(self) -> str:
        taken = ", ".join(str(entry) for entry in self._inputs)
        return f"{self._class}, recorded with torch {self._torch}; takes {taken}"

    def _call_from_json(self, entry: Json, index: int) -> _Call:
        where = f"{self.where}: operation {index}"
        parts = as_object(entry, where, required=("call", "args"), optional=("kwargs",))
        name = as_text(parts["call"], where)
        function = function_named(name, where)
        args, kwargs = as_list(parts["args"], where), as_object(parts.get("kwargs", {}), where)
        wrong = check_arguments(function, len(args), kwargs)
        if wrong is not None:
            raise FileError(f"{where}: {name} {wrong}")
        return _Call(
            function=function,
            args=[self._argument(value, index) for value in args],
            kwargs={key: self._argument(value, index) for key, value in kwargs.items()},
        )

    def _argument(self, value: Json, n_results: int) -> object:
        """An argument with references in place of what is there only when it runs."""
        if isinstance(value, list):
            return [self._argument(item, n_results) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            kind, content = next(iter(value.items()))
            if kind == DEVICE:
                return _Device()
            if kind == "tensor":
                return _Stored(as_text(content, self.where))
            if kind in ("node", "input"):
                index = as_integer(content, self.where)
                if 0 <= index < (n_results if kind == "node" else len(self._inputs)):
                    return _Result(index) if kind == "node" else _Input(index)
        return value_from_json(value, self.where)

    def run(self, inputs: Sequence[Tensor], device: torch.device | None) -> object:
        """The outputs for inputs that were checked."""
        values: list[object] = []

        def resolved(value: object) -> object:
            if isinstance(value, list):
                return [resolved(item) for item in value]
            if isinstance(value, _Result):
                return values[value.index]
            if isinstance(value, _Stored):
                holder, key = self.homes[value.name]
                return getattr(holder, key)
            if isinstance(value, _Input):
                return inputs[value.index]
            return device if isinstance(value, _Device) else value

        for call in self._calls:
            given = [resolved(value) for value in call.args]
            named = {key: resolved(value) for key, value in call.kwargs.items()}
            values.append(call.function(*given, **named))
            for index in call.last_used:
                values[index] = None
        results = [resolved(value) for value in self._results]
        return filled(self._outputs, results, self.where)  # type: ignore[arg-type]

    def tensors_of(self, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
        """The input tensors, checked."""
        if len(args) > len(self._positional):
            raise BatchesError(
                f"{self._class}: {len(args)} positional arguments, where it was recorded with "
                f"{len(self._positional)}{self._usage}"
            )
        twice = [name for name in self._positional[: len(args)] if name in kwargs]
        if twice:
            raise BatchesError(
                f"{self._class}: {listed(twice)} is given by position and by name; give it once{self._usage}"
            )
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        unknown = sorted(set(given) - set(self._arguments))
        if unknown:
            raise BatchesError(f"{self._class}: no argument {listed(unknown)}{self._usage}")
        found: dict[int, Tensor] = {}
        for name, outline in self._arguments.items():
            if name in given:
                found |= tensors_of(outline, given[name], name, self.where)
            elif isinstance(outline, dict) and "value" not in outline:
                raise BatchesError(f"{self._class}: {name} is missing{self._usage}")
        tensors = [found[number] for number in range(len(self._inputs))]
        for entry, tensor in zip(self._inputs, tensors, strict=True):
            if not entry.takes(tensor):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise BatchesError(f"{self._class}: {entry.name} is {list(tensor.shape)} {kind}{self._usage}")
        # Not in a set: while it is captured, a number of samples may be a symbol.
        sizes = [
            tensor.shape[0]
            for entry, tensor in zip(self._inputs, tensors, strict=True)
            if entry.shape and entry.shape[0] is None
        ]
        if any(size != sizes[0] for size in sizes[1:]):
            raise BatchesError(
                f"{self._class}: inputs have {' and '.join(map(str, sorted(set(sizes))))} samples; give as "
                "many in each"
            )
        return tensors

    @property
    def _usage(self) -> str:
        taken = "; ".join(str(entry) for entry in self._inputs)
        return f"; this architecture was recorded for {taken}, and takes that"


class RecordedModel(nn.Module):
    """A compressed model that was loaded without its class.

    It computes what the model computed in eval mode, operation by operation, for inputs of the recorded
    shapes; the number of samples is free where the model allowed it. Parameters and buffers have their names,
    gradients flow, and it can be moved to another device; ``train()`` changes nothing.

    Args:
        facts: of a recorded program.
        state: its tensors, by name.
        unsaved: names of those that are in no state dict.
        where: the file, for errors.

    Raises:
        FileError: it is of another version of slimrank or torch, or altered.
    """

    def __init__(
        self, facts: Mapping[str, Json], state: Mapping[str, Tensor], unsaved: Sequence[str], where: str
    ) -> None:
        super().__init__()
        check_format(
            facts.get("format"),
            PROGRAM_FORMAT,
            where=where,
            advice="use the version of slimrank that wrote it",
        )
        try:
            _check_depth(facts)
            # A name that Python makes longer: no tensor or module of the model is called so.
            self.__program = _Program(facts, where)
        except FileError as error:
            raise FileError(
                f"{error} (recorded with torch {facts.get('torch')}, this is torch {torch.__version__}; use "
                "that version, or pass model=)"
            ) from error
        except (PlanError, KeyError, TypeError, IndexError) as error:
            raise FileError(f"{where} is no recorded architecture ({error}); save it again") from error
        _add_tensors(self, self.__program, state, frozenset(unsaved))
        self.eval()

    def forward(self, *args: object, **kwargs: object) -> object:
        """The outputs for inputs of the recorded shapes.

        Args:
            *args: positional arguments, as the model took them.
            **kwargs: keyword arguments.

        Returns:
            What the model returned: tensors in tuples, lists and dicts. What was no tensor is None.

        Raises:
            BatchesError: an argument is missing or unknown, or a tensor has another shape or dtype.
        """
        inputs = self.__program.tensors_of(args, kwargs)
        device = next((tensor.device for tensor in chain(self.parameters(), self.buffers())), None)
        if device is None and inputs:
            device = inputs[0].device
        return self.__program.run(inputs, device)

    def extra_repr(self) -> str:
        """What it takes, and which torch it was recorded with."""
        return str(self.__program)


def _add_tensors(
    root: nn.Module, program: _Program, state: Mapping[str, Tensor], unsaved: frozenset[str]
) -> None:
    """Registers tensors under their names, in plain modules for the dots, and notes where they are."""
    missing = sorted(program.needed - state.keys())
    if missing:
        raise FileError(f"{program.where}: no file holds the tensors {listed(missing)}; restore a copy")
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        try:
            holder = _module_at(root, path)
            if name in program.is_trained:
                # Tied parameters stay one.
                parameter = parameters.setdefault(
                    id(tensor), nn.Parameter(tensor, requires_grad=program.is_trained[name])
                )
                holder.register_parameter(key, parameter)
            else:
                holder.register_buffer(key, tensor, persistent=name not in unsaved)
        except (KeyError, TypeError) as error:
            raise FileError(
                f"{program.where}: a module cannot hold a tensor {name!r} ({error}); rename it in the class, "
                "and save again"
            ) from error
        program.homes[name] = holder, key


def _check_depth(facts: Mapping[str, Json]) -> None:
    """Refuses what is nested so deep that reading it would fill the stack of Python."""
    level: list[Json] = [dict(facts)]
    for _ in range(_MAX_DEPTH):
        lists = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [part for value in lists if isinstance(value, list) for part in value]
        if not level:
            return
    raise TypeError(f"it is nested deeper than {_MAX_DEPTH} lists and objects")


def _flat(value: object) -> list[object]:
    """Everything in nested lists and dicts."""
    if isinstance(value, dict):
        return _flat(list(value.values()))
    return [part for item in value for part in _flat(item)] if isinstance(value, list) else [value]


def _with_last_used(calls: Sequence[_Call], results: Sequence[object]) -> list[_Call]:
    """The calls, each with the results that may be forgotten after it."""
    kept = {value.index for value in _flat(list(results)) if isinstance(value, _Result)}
    last: dict[int, int] = {}
    for index, call in enumerate(calls):
        last[index] = index
        for value in _flat([call.args, call.kwargs]):
            if isinstance(value, _Result):
                last[value.index] = index
    forgotten: dict[int, list[int]] = {}
    for result, index in last.items():
        if result not in kept:
            forgotten.setdefault(index, []).append(result)
    return [
        _Call(
            function=call.function,
            args=call.args,
            kwargs=call.kwargs,
            last_used=tuple(forgotten.get(index, ())),
        )
        for index, call in enumerate(calls)
    ]


def _input_from_json(entry: Json, where: str) -> _InputFacts:
    parts = as_object(entry, where, required=("name", "shape", "dtype"))
    dtype = value_from_json(as_object(parts["dtype"], where), where)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype {dtype!r}")
    shape = (None if size is None else as_integer(size, where) for size in as_list(parts["shape"], where))
    return _InputFacts(name=as_text(parts["name"], where), shape=tuple(shape), dtype=dtype)


def _module_at(root: nn.Module, path: str) -> nn.Module:
    """The module under a dotted name, made of plain modules where it is missing."""
    module = root
    for part in path.split(".") if path else ():
        if part not in module._modules:
            module.add_module(part, nn.Module())
        child = module._modules[part]
        if child is None:
            raise TypeError(f"{path} is no module")
        module = child
    return module
