# SPDX-License-Identifier: Apache-2.0
"""Channels that can only go together: groups, and which parts of which tensors belong to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["output", "input"]
# Group -> its units that stay, ascending; groups that are not named stay whole.
Kept = Mapping[str, Sequence[int]]
# What a dropped block gives back: an argument, by position or by name, None, or a tuple of such.
Passes = int | str | None | tuple["Passes", ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisUnits:
    """Which units of a group the indices of one dimension of a tensor belong to.

    Where a dimension has several of these (heads, and the channels of every head), an index goes as soon as
    one of its units goes.

    Attributes:
        group: name of the group.
        dim: dimension of the tensor.
        role: "input" where a product sums over the dimension (columns of a consumer), else "output".
        units: unit of each index of the dimension; -1 where the index belongs to no unit of the group.
        queries: indices, ascending, that make queries of an attention which divides its scores by the square
            root of the group's size. Those that stay are multiplied by the square root of the share of units
            that stays, so that the scores of the attention do not change.
    """

    group: str
    dim: int
    role: Role
    units: tuple[int, ...]
    queries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A parameter or buffer that loses indices with a group.

    Attributes:
        name: dotted, as in ``named_parameters()`` or ``named_buffers()``; the first where it has several.
        shape: as it stands.
        itemsize: bytes of one number.
        is_parameter: False for a buffer, which no cost counts.
        positions: MACs of one sample per number of the tensor (how often each is a factor); 0 for vectors.
        axes: one entry for every group and dimension that belong together.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    is_parameter: bool
    positions: int
    axes: tuple[AxisUnits, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpec:
    """A product of two activations whose size goes with groups, such as queries times keys.

    Attributes:
        module: dotted name of the innermost module that runs it; "" for the model itself.
        macs: as it stands, for one sample.
        groups: its MACs become ``macs`` times the share of units that stays, of each of these groups.
    """

    module: str
    macs: int
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """Channels, heads or the like that can only go together.

    Attributes:
        name: of the first producer; "#2", "#3" after it where that layer makes several groups.
        units: how many units there are; one unit goes as a whole.
        unit_width: outputs of the first producer that one unit holds (1 for channels, the width of a head
            for heads).
        producers: layers that make these channels, in execution order.
        consumers: layers that read them and can be fitted anew, in execution order.
        is_inner: whether a product of two activations sums over them (queries and keys).
        sizes: (module, attribute) pairs of whole numbers in the user's modules that shrink in proportion.
        reason: why nothing of it can go, with the operation and the source line; None where it can.
    """

    name: str
    units: int
    unit_width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    is_inner: bool = False
    sizes: tuple[tuple[str, str], ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """A module that can be replaced by the identity.

    Attributes:
        name: dotted name of the module.
        macs, params, bytes: of everything inside it, for one sample.
        passes: what the model gets in place of its result; None for its only argument.
    """

    name: str
    macs: int
    params: int
    bytes: int
    passes: Passes = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMap:
    """Every group of a model, and what belongs to it.

    Attributes:
        groups: by name, in execution order of their first producers; frozen ones too.
        tensors: by name; those that a group which can be slimmed touches.
        products: of activations, those that such a group changes.
        blocks: by name, in execution order.
        norms: the batch norm behind a layer without bias, by layer name, where nothing else reads that layer:
            it makes up for a mean that moves when the layer is fitted anew, so that it needs no bias.
    """

    groups: Mapping[str, GroupSpec] = field(default_factory=dict)
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    products: tuple[ProductSpec, ...] = ()
    blocks: Mapping[str, BlockSpec] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
