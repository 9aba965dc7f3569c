# SPDX-License-Identifier: Apache-2.0
"""The rule of recurrent layers, which is one for the whole module.

A kernel may run all steps at once, and then no operation inside of it is seen.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from slimrank.channels.trace._labels import Axis
from slimrank.channels.trace._ops import Traced
from slimrank.forward import named_tensors

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
# Layers that the rule knows; a subclass counts as its base as long as it keeps the base's forward.
_KNOWN: tuple[type[nn.Module], ...] = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
# Cells and layers that keep a second state, beside what they give.
_WITH_CELL = (nn.LSTM, nn.LSTMCell)


def is_recurrent(module: nn.Module) -> bool:
    """Whether ``trace_recurrent`` follows a module as a whole, and nothing the operations inside of it."""
    return isinstance(module, _RECURRENT)


def trace_recurrent(
    traced: Traced,
    module: nn.Module,
    name: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    output: object,
) -> None:
    """Follows the labels through one call of a recurrent layer.

    A hidden unit is a row of every gate, a column of the recurrent matrix and of whatever reads the outputs:
    without it, nothing that is left reads what it would have been. The module has one number of units for
    all its layers and directions, so unit i goes in each of them.

    Args:
        traced: labels and uses.
        module: the layer, for which ``is_recurrent`` holds.
        name: its dotted name.
        args: what it was called with, by position.
        kwargs: the same, by keyword.
        output: what it gave.
    """
    for _, tensor in named_tensors([*args, *kwargs.values()]):
        traced.use(tensor)
    call = _Call(traced, module, name, args, kwargs)
    if call.is_known:
        call.follow(output)
    else:
        call.freeze_all()


class _Call:
    """One call of a recurrent layer."""

    def __init__(
        self,
        traced: Traced,
        module: nn.Module,
        name: str,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> None:
        self._traced = traced
        self._module = module
        self._name = name
        self._given = args[0] if args else kwargs.get("input")
        self._states = args[1] if len(args) > 1 else kwargs.get("hx")
        self._is_cell = isinstance(module, nn.RNNCellBase)
        self._parameters = {
            key: parameter for key, parameter in module._parameters.items() if parameter is not None
        }

    @property
    def is_known(self) -> bool:
        """Whether it computes what torch's layer does, from weights of its own."""
        kind = type(self._module)
        base = next((base for base in _KNOWN if issubclass(kind, base)), None)
        if base is None or kind.forward is not base.forward or "forward" in vars(self._module):
            return False
        known = {key for keys in self._keys() for key in keys.values()}
        # Of a layer whose weights are computed in every forward, some are not among its parameters.
        needed = {
            key for keys in self._keys() for role, key in keys.items() if role in {"weight_ih", "weight_hh"}
        }
        return needed <= set(self._parameters) <= known and isinstance(self._given, Tensor | PackedSequence)

    def freeze_all(self) -> None:
        """Nothing that it reads or makes may go."""
        for _, tensor in named_tensors([self._given, self._states]):
            for axis in self._traced.axes(tensor):
                self._traced.labels.freeze(axis, self._why)
        for parameter in self._parameters.values():
            for axis in self._traced.axes(parameter):
                self._traced.labels.freeze(axis, self._why)
            self._traced.note_matrix(parameter)

    def follow(self, output: object) -> None:
        """Gives labels to what came out."""
        x = self._given.data if isinstance(self._given, PackedSequence) else self._given
        if not isinstance(x, Tensor):
            raise TypeError(f"{self._name}: the input is {type(x).__name__}, no tensor")
        *lead, columns = self._traced.axes(x)
        for axis in lead:
            self._traced.labels.freeze(axis, self._why)
        self._traced.made(x)
        n_rows = prod(x.shape[:-1])
        made: list[Axis] = []
        units: Axis = None
        cells: Axis = None
        for number, keys in enumerate(self._keys()):
            if number % self._n_directions == 0 and number:
                # The layer before gives the units of both directions, one after the other.
                columns, made = _joined(made), []
            is_first = number == 0
            new_units, new_cells = self._direction(keys, columns, n_rows)
            units = new_units if is_first else self._unify(units, new_units)
            cells = new_cells if is_first else self._unify(cells, new_cells)
            made.append(new_units)
        self._unify_states(self._states, units, cells)
        self._give(output, [*lead, _joined(made)], units, cells)

    @property
    def _n_directions(self) -> int:
        return 2 if getattr(self._module, "bidirectional", False) else 1

    def _keys(self) -> Iterator[dict[str, str]]:
        """Names of the parameters of each direction of each layer, by what they do."""
        roles = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        if self._is_cell:
            yield {role: role for role in roles}
            return
        for layer in range(int(getattr(self._module, "num_layers", 0))):
            for end in ("", "_reverse")[: self._n_directions]:
                yield {role: f"{role}_l{layer}{end}" for role in roles}

    def _direction(self, keys: Mapping[str, str], columns: Axis, n_rows: int) -> tuple[Axis, Axis]:
        """What one direction of one layer makes of its inputs.

        Args:
            keys: names of its parameters.
            columns: labels of its inputs.
            n_rows: how often each matrix is applied.

        Returns:
            Labels of what it gives, and of its cells: the same, unless outputs are projected.
        """
        weight_in, weight_back = self._parameters[keys["weight_ih"]], self._parameters[keys["weight_hh"]]
        rows = self._traced.axes(weight_in)[0]
        n_cells = int(str(self._module.hidden_size))
        # Gates stand one below the other.
        self._traced.labels.couple(rows, len(weight_in) // n_cells, self._why)
        cells = None if rows is None else rows[:n_cells]
        self._unify(columns, self._traced.axes(weight_in)[1])
        self._unify(rows, self._traced.axes(weight_back)[0])
        for role in ("bias_ih", "bias_hh"):
            bias = self._parameters.get(keys[role])
            if bias is not None:
                self._traced.made(bias)
                self._unify(rows, self._traced.axes(bias)[0])
        projection = self._parameters.get(keys["weight_hr"])
        units = cells
        if projection is not None:
            units, read = self._traced.axes(projection)
            self._unify(cells, read)
            # Torch tells by the sizes of the two states whether there is a projection: they have to differ.
            self._traced.labels.freeze(cells, lambda: f"{self._why()}, and its outputs are projected")
            self._use(projection, n_rows)
        self._unify(units, self._traced.axes(weight_back)[1])
        self._use(weight_in, n_rows)
        self._use(weight_back, n_rows)
        return units, cells

    def _use(self, matrix: Tensor, n_rows: int) -> None:
        """Notes a matrix as a factor of a product."""
        self._traced.note_matrix(matrix)
        for origin in self._traced.origins(matrix) or ():
            self._traced.uses.count[origin.name] += 1
            self._traced.uses.macs[origin.name] += n_rows * matrix.numel()

    def _unify_states(self, states: object, units: Axis, cells: Axis) -> None:
        """The states that a call starts with have the width of those that it leaves."""
        for (_, state), axis in zip(named_tensors(states), (units, cells), strict=False):
            *lead, width = self._traced.axes(state)
            for other in lead:
                self._traced.labels.freeze(other, self._why)
            self._traced.made(state)
            self._unify(width, axis)

    def _give(self, output: object, axes: Sequence[Axis], units: Axis, cells: Axis) -> None:
        if self._is_cell:
            last: tuple[Axis, ...] = (units, cells)
            for (_, tensor), axis in zip(named_tensors(output), last, strict=False):
                self._give_one(tensor, [*axes[:-1], axis])
            return
        outputs, states = output if isinstance(output, tuple) and len(output) == 2 else (None, None)
        made = outputs.data if isinstance(outputs, PackedSequence) else outputs
        if not isinstance(made, Tensor):
            raise TypeError(f"{self._name}: the output is {type(output).__name__}, not outputs and states")
        self._give_one(made, axes)
        for (_, state), axis in zip(named_tensors(states), (units, cells), strict=False):
            self._give_one(state, [*[None] * (state.ndim - 1), axis])

    def _give_one(self, tensor: Tensor, axes: Sequence[Axis]) -> None:
        self._traced.give(tensor, axes)
        self._traced.forget_origins(tensor)

    def _unify(self, a: Axis, b: Axis) -> Axis:
        return self._traced.labels.unify(a, b, self._why)

    def _why(self) -> str:
        return f"{self._name or 'the model'} is recurrent ({type(self._module).__name__})"


def _joined(parts: Sequence[Axis]) -> Axis:
    """Labels of several directions, one after the other."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None
