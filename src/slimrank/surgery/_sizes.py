# SPDX-License-Identifier: Apache-2.0
"""Sizes that modules keep as attributes, next to the tensors that they are sizes of."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimrank._errors import ModelError
from slimrank.surgery._attention import SlimAttention

# Integers in a buffer are taken for a shape, as importers of ONNX keep them, up to so many.
_LONGEST_SHAPE = 6
# An attribute, or one element of it: ``num_heads``, ``shape[2]``.
_PATH = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Size:
    """A whole number in a module.

    Attributes:
        module: that keeps it.
        where: name of the module, for messages.
        attribute: name of the attribute.
        index: of the element of a tuple, a list or a buffer; None where the attribute is the number itself.
        value: the number.
    """

    module: nn.Module
    where: str
    attribute: str
    index: int | None = None
    value: int

    @classmethod
    def read(cls, module: nn.Module, path: str, where: str) -> "Size":
        """Reads a size.

        Args:
            module: that keeps it.
            path: the attribute, ``"num_heads"``, or an element of it, ``"shape[2]"``.
            where: name of the module, for messages.

        Raises:
            ModelError: there is no such whole number.
        """
        match = _PATH.fullmatch(path)
        attribute = match[1] if match else path
        index = int(match[2]) if match and match[2] else None
        value = vars(module).get(attribute, module._buffers.get(attribute))
        if index is not None:
            items = size_items(value)
            value = items[index] if index < len(items) else None
        if type(value) is not int:
            raise ModelError(
                f"{type(module).__name__} {where!r} has no whole number {path!r}; "
                "the groups were read from another model"
            )
        return cls(module=module, where=where, attribute=attribute, index=index, value=value)

    @property
    def path(self) -> str:
        """As in ``read``."""
        return self.attribute if self.index is None else f"{self.attribute}[{self.index}]"

    def resized(self, value: int) -> "Size":
        """The same attribute with another number; the module is left alone."""
        return replace(self, value=value)

    def write(self) -> None:
        """Sets the number in the module; tuples and lists are replaced, since others may hold them too."""
        if self.index is None:
            setattr(self.module, self.attribute, self.value)
            return
        table = self.module._buffers if self.attribute in self.module._buffers else vars(self.module)
        old = table[self.attribute]
        items = size_items(old)
        items[self.index] = self.value
        if isinstance(old, Tensor):
            self.module._buffers[self.attribute] = old.new_tensor(items)
        elif isinstance(old, tuple | list):
            setattr(self.module, self.attribute, type(old)(items))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A tensor and what stays of it.

    Attributes:
        tensor: as it stands.
        stays: dimension -> indices that stay, ascending; dimensions not named stay whole.
        scales: dimension -> what each index that stays is multiplied by; dimensions not named by nothing.
    """

    tensor: Tensor
    stays: Mapping[int, tuple[int, ...]]
    scales: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what stays."""
        return tuple(
            len(self.stays[dim]) if dim in self.stays else size for dim, size in enumerate(self.tensor.shape)
        )


def size_items(value: object) -> list[int]:
    """The elements of what may hold sizes: a tuple, a list or a short vector of integers; none of others."""
    if isinstance(value, Tensor):
        is_shape = value.dtype == torch.int64 and value.ndim == 1 and 1 < value.numel() <= _LONGEST_SHAPE
        return value.tolist() if is_shape and not value.is_meta else []
    return list(value) if isinstance(value, tuple | list) else []


def synced_sizes(model: nn.Module, cuts: Mapping[int, Cut]) -> list[Size]:
    """What standard modules must say of their sizes once tensors are cut.

    Args:
        model: as it stands.
        cuts: by ``id`` of the tensor.

    Returns:
        Sizes to be written after the tensors are replaced.

    Raises:
        ModelError: the groups of a convolution or group norm are left with different numbers of channels.
    """
    sizes: list[Size] = []
    for name, module in model.named_modules():
        rule = next((rule for kind, rule in _RULES if isinstance(module, kind)), None)
        if rule is None:
            continue
        owned = dict(_owned(module))
        if not any(id(tensor) in cuts for tensor in owned.values()):
            continue
        try:
            new = rule(module, _Left(owned, cuts))
        except _UnevenError as error:
            raise ModelError(f"{type(module).__name__} {name!r}: {error}") from error
        sizes += [
            Size(module=module, where=name, attribute=attribute, value=value)
            for attribute, value in new.items()
        ]
    return sizes


def synced_attributes(module: nn.Module) -> frozenset[str]:
    """Attributes of a standard module that follow from its tensors; none where it has no tensors.

    Args:
        module: any module.

    Returns:
        Names.
    """
    if not dict(_owned(module)):
        return frozenset()
    return frozenset(name for kind, names in _SYNCED.items() if isinstance(module, kind) for name in names)


class _UnevenError(Exception):
    """Blocks of channels that are left with different sizes."""


class _Left:
    """What is left of the tensors of one module."""

    def __init__(self, owned: Mapping[str, Tensor], cuts: Mapping[int, Cut]) -> None:
        self._owned = owned
        self._cuts = cuts

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the tensor that is left; () where there is none."""
        tensor = self._find(key)
        if tensor is None:
            return ()
        return self._cuts[id(tensor)].shape if id(tensor) in self._cuts else tuple(tensor.shape)

    def old_shape(self, key: str) -> tuple[int, ...]:
        """Of the tensor as it stood; () where there is none."""
        tensor = self._find(key)
        return () if tensor is None else tuple(tensor.shape)

    def blocks(self, key: str, count: int) -> int:
        """How many of the equal blocks that make up the first dimension are left."""
        tensor = self._find(key)
        if tensor is None or id(tensor) not in self._cuts or 0 not in self._cuts[id(tensor)].stays:
            return count
        length = tensor.shape[0] // count
        staying = self._cuts[id(tensor)].stays[0]
        sizes = [0] * count
        for index in staying:
            sizes[index // length] += 1
        left = [size for size in sizes if size]
        if len(set(left)) > 1:
            counts = ", ".join(map(str, sorted(set(left))))
            raise _UnevenError(f"its groups would be left with {counts} channels; keep as many in each")
        return len(left)

    def _find(self, key: str) -> Tensor | None:
        """The tensor of this name, or what it is computed from: the largest, which has its shape."""
        if key in self._owned:
            return self._owned[key]
        sources = [tensor for name, tensor in self._owned.items() if name.startswith((f"{key}_", f"{key}."))]
        return max(sources, key=Tensor.numel, default=None)


def _owned(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a module itself, and what its parametrised ones are computed from (``weight.original``)."""
    for key, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None:
            yield key, tensor
    parametrised = module._modules.get("parametrizations")
    if parametrised is not None:
        yield from parametrised.named_parameters()
        yield from parametrised.named_buffers()


_Rule = Callable[[nn.Module, _Left], Mapping[str, int]]


def _linear(_module: nn.Module, left: _Left) -> Mapping[str, int]:
    rows, columns = left.shape("weight")
    return {"out_features": rows, "in_features": columns}


def _bilinear(_module: nn.Module, left: _Left) -> Mapping[str, int]:
    rows, first, second = left.shape("weight")
    return {"out_features": rows, "in1_features": first, "in2_features": second}


def _conv(module: nn.Module, left: _Left) -> Mapping[str, int]:
    # Outputs of one group stand together (for a transposed one, inputs do).
    groups = left.blocks("weight", _int(module, "groups"))
    first, second = left.shape("weight")[:2]
    sizes = {"groups": groups}
    if isinstance(module, _ConvTransposeNd):
        return sizes | {"in_channels": first, "out_channels": second * groups}
    return sizes | {"in_channels": second * groups, "out_channels": first}


def _norm(_module: nn.Module, left: _Left) -> Mapping[str, int]:
    shape = left.shape("weight") or left.shape("running_mean")
    return {"num_features": shape[0]}


def _group_norm(module: nn.Module, left: _Left) -> Mapping[str, int]:
    groups = left.blocks("weight", _int(module, "num_groups"))
    return {"num_groups": groups, "num_channels": left.shape("weight")[0]}


def _embedding(_module: nn.Module, left: _Left) -> Mapping[str, int]:
    rows, columns = left.shape("weight")
    return {"num_embeddings": rows, "embedding_dim": columns}


def _recurrent(module: nn.Module, left: _Left) -> Mapping[str, int]:
    end = "" if isinstance(module, nn.RNNCellBase) else "_l0"
    rows, columns = left.shape(f"weight_ih{end}")
    # Gates stand one below the other, and each is left with as many rows.
    old_rows = left.old_shape(f"weight_ih{end}")[0]
    sizes = {
        "input_size": columns,
        "hidden_size": rows * _int(module, "hidden_size") // old_rows,
    }
    projection = left.shape(f"weight_hr{end}")
    return sizes | {"proj_size": projection[0]} if projection else sizes


def _prelu(_module: nn.Module, left: _Left) -> Mapping[str, int]:
    return {"num_parameters": left.shape("weight")[0]}


def _attention(module: nn.Module, left: _Left) -> Mapping[str, int]:
    if type(module) not in (nn.MultiheadAttention, SlimAttention):
        # With a forward of its own, which has sizes of its own.
        return {}
    heads = _int(module, "num_heads")
    if left.shape("in_proj_weight"):
        blocks, parts = left.blocks("in_proj_weight", 3 * heads), 3
        rows, columns = left.shape("in_proj_weight")
        sizes = {"embed_dim": columns, "kdim": columns, "vdim": columns}
    else:
        blocks, parts = left.blocks("q_proj_weight", heads), 1
        rows, columns = left.shape("q_proj_weight")
        sizes = {"embed_dim": columns}
        sizes |= {f"{part}dim": left.shape(f"{part}_proj_weight")[1] for part in ("k", "v")}
    return sizes | {"num_heads": blocks // parts, "head_dim": rows // blocks}


def _int(module: nn.Module, attribute: str) -> int:
    return Size.read(module, attribute, type(module).__name__).value


# Subclasses keep the meaning of these attributes. The first row that fits is taken.
_RULES: tuple[tuple[type[nn.Module], _Rule], ...] = (
    (nn.Linear, _linear),
    (_ConvNd, _conv),
    (_NormBase, _norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent),
    (nn.Bilinear, _bilinear),
    (nn.MultiheadAttention, _attention),
)
# What the rules above may set, so that the search for sizes in the user's modules leaves it alone.
_SYNCED: Mapping[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("out_features", "in_features"),
    _ConvNd: ("groups", "in_channels", "out_channels"),
    _NormBase: ("num_features",),
    nn.GroupNorm: ("num_groups", "num_channels"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.EmbeddingBag: ("num_embeddings", "embedding_dim"),
    nn.PReLU: ("num_parameters",),
    nn.RNNBase: ("input_size", "hidden_size", "proj_size"),
    nn.RNNCellBase: ("input_size", "hidden_size"),
    nn.Bilinear: ("out_features", "in1_features", "in2_features"),
    nn.MultiheadAttention: ("embed_dim", "kdim", "vdim", "num_heads", "head_dim"),
}
