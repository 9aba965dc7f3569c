# SPDX-License-Identifier: Apache-2.0
"""One operation of a traced forward, and what is known of the tensors that it works on."""

import linecache
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from slimrank.channels.trace._labels import ANY, Axis, Labels
from slimrank.forward import call, is_users_code, named_tensors

Axes = tuple[Axis, ...]
Dims = Sequence[tuple[int, ...]]

# Reasons stand in tables: longer lines of the user's code are cut.
_LONGEST_LINE = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """A parameter or buffer that a constant tensor was computed from.

    Attributes:
        name: of the parameter or buffer.
        dims: which of its dimensions each dimension of the tensor carries.
        is_whole: whether every number of it stands in the tensor, each as often as the others.
    """

    name: str
    dims: tuple[tuple[int, ...], ...]
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedProduct:
    """A product whose MACs cannot be counted by the numbers of one parameter.

    Attributes:
        module: the innermost module that runs it.
        where: operation and source line.
        macs: of one forward.
        axes: labels of every dimension that its MACs go with, those without labels left out.
    """

    module: str
    where: str
    macs: int
    axes: Axes


@dataclass(slots=True)
class Uses:
    """What was seen of parameters: (name, dimension) pairs, MACs, and products.

    Attributes:
        made: dimensions that a product makes, or that enter an activation in another way.
        linked: those of them that belong to one family: outputs of a layer.
        read: dimensions that a product sums over.
        inside: dimensions that hold no channels: kernels, rows of tables.
        macs: MACs of one forward that multiply the numbers of a parameter, each equally often.
        count: how often a parameter is a factor of a product.
        products: those that ``macs`` does not hold.
        sums: labels that a product of two activations sums over.
    """

    made: set[tuple[str, int]] = field(default_factory=set)
    linked: set[tuple[str, int]] = field(default_factory=set)
    read: set[tuple[str, int]] = field(default_factory=set)
    inside: set[tuple[str, int]] = field(default_factory=set)
    macs: Counter[str] = field(default_factory=Counter)
    count: Counter[str] = field(default_factory=Counter)
    products: list[TracedProduct] = field(default_factory=list)
    sums: list[Axis] = field(default_factory=list)


class Traced:
    """Labels, origins and uses of every tensor of one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.labels = Labels()
        self.uses = Uses()
        self.stored: dict[str, Tensor] = {}
        self.modules: list[str] = []
        self._parameters_of: dict[str, tuple[str, ...]] = {}
        self._axes: dict[int, Axes] = {}
        self._origins: dict[int, tuple[Origin, ...]] = {}
        self._constants: defaultdict[object, list[int]] = defaultdict(list)
        self._pending: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
        self._names: dict[int, str] = {}
        self._names_by_storage: dict[tuple[object, ...], str] = {}
        # An id belongs to a tensor only as long as the tensor lives.
        self._alive: list[Tensor] = []
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.layout == torch.strided and not tensor.is_nested:
                self.stored[name] = tensor
                self._names[id(tensor)] = name
                self._names_by_storage.setdefault(_storage(tensor), name)
        self._kernels: set[str] = set()
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                self._kernels.update(self._names.get(id(p), "") for p in module.parameters() if p.ndim > 2)
            parameters = (p for p in module._parameters.values() if p is not None)
            self._parameters_of[name] = tuple(self._names[id(p)] for p in parameters if id(p) in self._names)

    def axes(self, tensor: Tensor) -> Axes:
        """Labels of every dimension of a tensor."""
        known = self._axes.get(id(tensor))
        if known is None or len(known) != tensor.ndim:
            known = self._first_seen(tensor)
        return known

    def known_axes(self, tensor: Tensor) -> Axes:
        """Labels of a parameter or buffer; none where no operation has seen it."""
        return self._axes.get(id(tensor), ())

    def origins(self, tensor: Tensor) -> tuple[Origin, ...] | None:
        """What a constant was computed from; None for a tensor that depends on the inputs."""
        self.axes(tensor)
        return self._origins.get(id(tensor))

    def give(self, tensor: Tensor, axes: Sequence[Axis]) -> None:
        """Notes the labels of a tensor; dimensions of size 1 never have any."""
        self._alive.append(tensor)
        self._axes[id(tensor)] = tuple(
            None if size == 1 else axis for axis, size in zip(axes, tensor.shape, strict=True)
        )

    def give_origins(self, tensor: Tensor, origins: Sequence[Origin]) -> None:
        """Notes that a tensor is a constant, and what it was computed from."""
        self._origins[id(tensor)] = tuple(origins)
        self._constants[_memory(tensor)].append(id(tensor))

    def forget_origins(self, tensor: Tensor) -> None:
        """Notes that a tensor depends on the inputs, and with it whatever shares its memory."""
        for same in self._constants.pop(_memory(tensor), ()):
            self._origins.pop(same, None)

    def when_used(self, tensor: Tensor, then: Callable[[], None]) -> None:
        """Puts something off until a tensor is used: what is thrown away (attention weights) binds nobody."""
        self._alive.append(tensor)
        self._pending[id(tensor)].append(then)

    def use(self, tensor: Tensor) -> None:
        """Notes that a tensor is used."""
        for then in self._pending.pop(id(tensor), ()):
            then()

    def is_of_module(self, origins: Sequence[Origin] | None) -> bool:
        """Whether a constant comes from a parameter that the module which runs now holds itself."""
        names = self._parameters_of.get(self.modules[-1], ()) if self.modules else ()
        return any(origin.name in names for origin in origins or ())

    def made(self, tensor: Tensor, origins: Sequence[Origin] | None = None) -> None:
        """Notes that a constant enters an activation."""
        for origin in self.origins(tensor) or () if origins is None else origins:
            self.uses.made.update((origin.name, dim) for dims in origin.dims for dim in dims)

    def note_matrix(self, matrix: Tensor) -> None:
        """Notes a matrix of a layer that is left alone: it makes its rows and reads its columns."""
        for origin in self.origins(matrix) or ():
            if matrix.ndim > 1:
                self.uses.made.add((origin.name, 0))
                self.uses.linked.add((origin.name, 0))
                self.uses.read.add((origin.name, 1))

    def _fresh(self, name: str, dim: int) -> Axis:
        """Labels of a dimension of a parameter; kernels have none, nor have tables of whole numbers."""
        tensor = self.stored[name]
        is_kernel = dim > 1 and name in self._kernels
        if tensor.shape[dim] == 1 or is_kernel or not holds_numbers(tensor):
            return None
        return self.labels.fresh(tensor.shape[dim], name, dim)

    def _first_seen(self, tensor: Tensor) -> Axes:
        name = self._names.get(id(tensor)) or self._names_by_storage.get(_storage(tensor))
        if name is None or self.stored[name].shape != tensor.shape:
            self.give(tensor, (None,) * tensor.ndim)
            return self._axes[id(tensor)]
        # Tensors that share the storage of a parameter (what .data gives) are that parameter.
        stored = self.stored[name]
        if id(stored) not in self._axes:
            self.give(stored, [self._fresh(name, dim) for dim in range(stored.ndim)])
            dims = tuple((dim,) for dim in range(stored.ndim))
            self.give_origins(stored, [Origin(name, dims, is_whole=True)])
        if tensor is not stored:
            self.give(tensor, self._axes[id(stored)])
            self.give_origins(tensor, self._origins[id(stored)])
        return self._axes[id(tensor)]


class Op:
    """One operation: its arguments by name, its outputs, and what its rule says of them."""

    def __init__(
        self,
        traced: Traced,
        func: object,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        result: object,
    ) -> None:
        self.traced = traced
        self.labels = traced.labels
        self.func = func
        self.name = _name(func)
        self.given = _bound(func, args, kwargs)
        self.inputs = [t for _, t in named_tensors([*args, *kwargs.values()])]
        self.outputs = [t for _, t in named_tensors(result)]
        ids = {id(given) for given in self.inputs}
        self._is_in_place = any(id(out) in ids for out in self.outputs)
        for given in self.inputs:
            traced.use(given)

    def axes(self, tensor: Tensor) -> Axes:
        """Labels of every dimension of a tensor."""
        return self.traced.axes(tensor)

    def tensor(self, name: str) -> Tensor:
        """The argument of this name, which is a tensor."""
        value = self.given[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name}: {name} is {value!r}, no tensor")
        return value

    def optional(self, name: str) -> Tensor | None:
        """The argument of this name if it is there and a tensor."""
        value = self.given.get(name)
        return value if isinstance(value, Tensor) else None

    def tensors(self, name: str) -> list[Tensor | None]:
        """The argument of this name, which is a list of tensors."""
        value = self.given[name]
        items = value if isinstance(value, tuple | list) else [value]
        return [item if isinstance(item, Tensor) else None for item in items]

    def number(self, name: str, otherwise: int = 0) -> int:
        """The argument of this name as a whole number; ``otherwise`` where it is missing."""
        value = self.given.get(name)
        return int(value) if isinstance(value, int) else otherwise

    def numbers(self, name: str) -> list[int]:
        """The argument of this name as a list of whole numbers."""
        value = self.given.get(name)
        if isinstance(value, int):
            return [int(value)]
        return [int(item) for item in value] if isinstance(value, tuple | list) else []

    def give(
        self, tensor: Tensor, axes: Sequence[Axis], dims: Dims | None = None, *, is_whole: bool = True
    ) -> None:
        """Notes the labels of an output.

        Args:
            tensor: the output.
            axes: labels of each of its dimensions.
            dims: which dimensions of the first input each of them carries; None for what stands in the same
                place, counted from the last.
            is_whole: whether every number of the inputs stands in the output, each equally often.
        """
        self.traced.give(tensor, axes)
        origins = [self.traced.origins(given) for given in self.inputs]
        if any(of_input is None for of_input in origins):
            # In-place work makes an activation of a constant.
            self.traced.forget_origins(tensor)
            return
        carried: dict[tuple[str, tuple[tuple[int, ...], ...]], bool] = {}
        for given, of_given in zip(self.inputs, origins, strict=True):
            where = dims or [(i,) if i >= 0 else () for i in range(given.ndim - tensor.ndim, given.ndim)]
            for origin in of_given or ():
                kept = tuple(
                    tuple(dim for d in dims_of_input if d < given.ndim for dim in origin.dims[d])
                    for dims_of_input in where
                )
                before = carried.get((origin.name, kept), False)
                carried[origin.name, kept] = before or (origin.is_whole and is_whole)
        self.traced.give_origins(
            tensor, [Origin(name, kept, whole) for (name, kept), whole in carried.items()]
        )

    def freeze(self, axis: Axis, detail: str = "") -> None:
        """Nothing of a dimension may go, once a result of this operation is used."""
        if self._is_in_place or not self.outputs:
            self.labels.freeze(axis, lambda: self.why(detail))
        elif self.labels.has_free(axis):
            why = self.why(detail)
            for out in self.outputs:
                self.traced.when_used(out, lambda: self.labels.freeze(axis, lambda: why))

    def give_up(self) -> None:
        """Nothing of any input may go, and the outputs carry no labels: the rule of what is not known."""
        for given in self.inputs:
            for axis in self.axes(given):
                self.freeze(axis)
        for out in self.outputs:
            self.give(out, unlabelled(out), [()] * out.ndim, is_whole=False)

    def unify(self, a: Axis, b: Axis) -> Axis:
        """Two dimensions are the same, index by index."""
        return self.labels.unify(a, b, self.why)

    def split(self, axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
        """A dimension as two."""
        return self.labels.split(axis, outer, inner, self.why)

    def merge(self, dims: Sequence[tuple[Axis, int]]) -> Axis:
        """Several dimensions as one."""
        return self.labels.merge(dims, self.why)

    def why(self, detail: str = "") -> str:
        """This operation and the line of the user's code that runs it."""
        return f"{detail}{': ' if detail else ''}{self.name} {self._source_line()}"

    def product(self, macs: int, axes: Sequence[Axis]) -> None:
        """Notes a product whose MACs go with labels of activations."""
        labelled = tuple(axis for axis in axes if axis is not None and axis.size)
        if labelled:
            module = self.traced.modules[-1] if self.traced.modules else ""
            self.traced.uses.products.append(
                TracedProduct(module=module, where=self.why(), macs=macs, axes=labelled)
            )

    def _source_line(self) -> str:
        # Up the stack to the first line of the user's code, but not beyond the forward: its caller is not the
        # model's.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not call.__code__:
            file = frame.f_code.co_filename
            if is_users_code(file):
                line = linecache.getline(file, frame.f_lineno).strip()
                short = line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 3]}..."
                return f"at {Path(file).name}:{frame.f_lineno} `{short}`"
            frame = frame.f_back
        module = self.traced.modules[-1] if self.traced.modules else ""
        return f"in {module!r}" if module else "in the model itself"


def whole_numel(tensor: Tensor, stored: Tensor, origin: Origin) -> bool:
    """Whether a tensor holds every number of a parameter equally often, and those only."""
    carried = {dim for dims in origin.dims for dim in dims}
    has_all = all(dim in carried for dim, size in _sizes(stored) if size > 1)
    carried_numel = prod(
        size for size, dims in zip(tensor.shape, origin.dims, strict=True) if size > 1 and dims
    )
    return origin.is_whole and has_all and carried_numel == stored.numel()


def holds_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers, and not indices or truth values."""
    return tensor.is_floating_point() or tensor.is_complex()


def unlabelled(tensor: Tensor) -> Axes:
    """No labels in any dimension."""
    return (None,) * tensor.ndim


def expanded(old: Axis, old_size: int, new_size: int) -> Axis:
    """Labels of a dimension after it was expanded."""
    return ANY if old_size == 1 and new_size > 1 else old


def _sizes(tensor: Tensor) -> list[tuple[int, int]]:
    return list(enumerate(tensor.shape))


def _memory(tensor: Tensor) -> object:
    """The same for all tensors that look at one piece of memory."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except RuntimeError:
        # Some subclasses have no storage of their own.
        return id(tensor)


def _storage(tensor: Tensor) -> tuple[object, ...]:
    if tensor.layout != torch.strided or not tensor.numel():
        return (id(tensor),)
    try:
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    except RuntimeError:
        return (id(tensor),)


def _name(func: object) -> str:
    """One name for every form of an operation: "aten.add" of aten.add.Tensor and aten.add_.Tensor."""
    if not isinstance(func, torch._ops.OpOverload):
        return str(func)
    library, _, kernel = func._schema.name.partition("::")
    is_in_place = kernel.endswith("_") and not kernel.endswith("__")
    return f"{library}.{kernel[:-1] if is_in_place else kernel}"


def _bound(func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    if not isinstance(func, torch._ops.OpOverload):
        return dict(kwargs)
    arguments = func._schema.arguments
    given: dict[str, object] = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given.update(zip((a.name for a in arguments), args, strict=False))
    given.update(kwargs)
    return given
