# SPDX-License-Identifier: Apache-2.0
"""Constants that the forward reshapes to a size that it holds itself: the size follows the constant."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from slimrank._errors import ModelError

_SUFFIX = ".shape"
# What takes sizes as numbers. What takes another tensor's shape follows it already.
_TAKE_SIZES = frozenset(
    {
        *(torch.reshape, Tensor.reshape, Tensor.view, Tensor.expand, torch.broadcast_to),
        *(Tensor.broadcast_to, Tensor.unflatten, torch.unflatten),
    }
)
_METHODS = frozenset({"reshape", "view", "expand", "broadcast_to", "unflatten"})
# Keywords of the functions above that hold sizes.
_SIZES = ("shape", "size", "sizes")


def constant_path(key: str) -> str:
    """How the shape of a parameter or buffer is named among the sizes of a group."""
    return f"{key}{_SUFFIX}"


def is_constant_path(path: str) -> bool:
    """Whether a path names the shape of a parameter or buffer, and no attribute."""
    return path.endswith(_SUFFIX)


def runs_forward(module: nn.Module) -> bool:
    """Whether a module can be called: containers cannot."""
    return type(module).forward is not nn.Module.forward


@dataclass(frozen=True, slots=True, eq=False)
class ConstantShape:
    """A constant whose shape the forward of a module holds as numbers.

    Attributes:
        module: whose forward reshapes it.
        name: dotted name of the parameter or buffer in that module.
        shape: the one that the code was written for.
    """

    module: nn.Module
    name: str
    shape: tuple[int, ...]

    @classmethod
    def read(cls, model: nn.Module, module: str, path: str) -> "ConstantShape":
        """Reads the shape of a constant.

        Args:
            model: the tree.
            module: that holds the constant.
            path: as ``constant_path`` gives it.

        Raises:
            ModelError: there is no such parameter or buffer, or no module above it that is called.
        """
        parts = f"{module}.{path.removesuffix(_SUFFIX)}".lstrip(".").split(".")
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        tensor = tensors.get(".".join(parts))
        for length in range(len(parts) - 1, -1, -1):
            caller = model.get_submodule(".".join(parts[:length])) if tensor is not None else None
            if tensor is not None and caller is not None and runs_forward(caller):
                return cls(caller, ".".join(parts[length:]), tuple(tensor.shape))
        raise ModelError(
            f"{type(model).__name__} has no tensor {'.'.join(parts)!r} whose shape a forward could hold; "
            "the groups were read from another model"
        )

    def write(self) -> None:
        """From now on the constant has another shape than the code says: the module's forward tells it."""
        if isinstance(self.module, fx.GraphModule):
            # Its code can be written anew.
            self._rewrite(self.module)
            return
        inner = vars(self.module).get("forward")
        shapes: Mapping[str, tuple[int, ...]] = {self.name: self.shape}
        if isinstance(inner, FollowedForward):
            shapes, inner = {**shapes, **inner.shapes}, inner.inner
        # Exchanged and not changed: another copy of the model may have the old one.
        vars(self.module)["forward"] = FollowedForward(self.module, inner, shapes)

    def _rewrite(self, module: fx.GraphModule) -> None:
        sizes = _new_sizes(self.shape, _named(module, self.name).shape)
        known: set[fx.Node] = set()
        for node in module.graph.nodes:
            if node.op == "get_attr" and node.target == self.name:
                known.add(node)
            elif node.all_input_nodes and known.issuperset(node.all_input_nodes):
                known.add(node)
                if node.target in _TAKE_SIZES or node.target in _METHODS:
                    node.args = (*node.args[:1], *(_replaced(value, sizes) for value in node.args[1:]))
                    node.kwargs = {key: _replaced(value, sizes) for key, value in node.kwargs.items()}
        module.recompile()


def _named(module: nn.Module, name: str) -> Tensor:
    owner, _, key = name.rpartition(".")
    tensor = getattr(module.get_submodule(owner), key)
    if not isinstance(tensor, Tensor):
        raise ModelError(
            f"{type(module).__name__} keeps no tensor {name!r}; the groups were read from another model"
        )
    return tensor


class FollowedForward:
    """The forward of a module, in which sizes of its constants are taken as they are now.

    Args:
        module: whose forward it is.
        inner: a forward that the module had beside that of its class; None for none.
        shapes: by name, the shape that the code was written for.
    """

    def __init__(
        self,
        module: nn.Module,
        inner: Callable[..., object] | None,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.module = module
        self.inner = inner
        self.shapes = shapes

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Runs the forward."""
        sizes = {}
        for name, shape in self.shapes.items():
            tensor = _named(self.module, name)
            if tensor.ndim == len(shape):
                sizes[id(tensor)] = _new_sizes(shape, tensor.shape)
        with _FollowedSizes(sizes):
            if self.inner is not None:
                return self.inner(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


def _new_sizes(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, int]:
    """By size, the one that it has now; none for sizes that became several."""
    found: dict[int, set[int]] = {}
    for before, now in zip(old, new, strict=True):
        found.setdefault(before, set()).add(now)
    return {before: now for before, (now, *others) in found.items() if not others and now != before}


class _FollowedSizes(TorchFunctionMode):
    """Constants, and what is computed of them alone, are reshaped to the sizes that they have now."""

    def __init__(self, sizes: dict[int, dict[int, int]]) -> None:
        super().__init__()
        self._sizes = sizes
        # An id belongs to a tensor only as long as the tensor lives.
        self._alive: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs everything as it is, but for sizes of constants."""
        kwargs = kwargs or {}
        first, *others = (*args, *kwargs.values()) or (None,)
        sizes = self._sizes.get(id(first))
        if not sizes or any(isinstance(other, Tensor) and other.is_floating_point() for other in others):
            return func(*args, **kwargs)
        if func in _TAKE_SIZES:
            args = (*args[:1], *(_replaced(value, sizes) for value in args[1:]))
            kwargs = {
                key: _replaced(value, sizes) if key in _SIZES else value for key, value in kwargs.items()
            }
        result = func(*args, **kwargs)
        # What is computed of constants alone is one, too.
        if isinstance(result, Tensor) and result is not first:
            self._alive.append(result)
            self._sizes[id(result)] = sizes
        return result


def _replaced(value: object, sizes: Mapping[int, int]) -> object:
    if isinstance(value, tuple | list):
        return type(value)(_replaced(item, sizes) for item in value)
    return sizes.get(value, value) if type(value) is int else value
