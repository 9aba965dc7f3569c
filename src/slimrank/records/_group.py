# SPDX-License-Identifier: Apache-2.0
"""Channels that go together: groups, and what of which tensor belongs to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["output", "input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisUnits:
    """What one dimension of a tensor holds of a group.

    An index whose dimension has several of these (heads, and the width of each head) goes as soon as one of
    its units goes.

    Attributes:
        group: name of the group.
        dim: dimension of the tensor.
        role: "input" where a product sums over the dimension (columns of a consumer), else "output".
        units: (size of the dimension,) unit of each index; -1 where the index belongs to no unit of it.
        queries: indices, ascending, that make queries of an attention which divides its scores by the square
            root of the group's size. What stays of them is multiplied by the square root of the share of
            units that stays, so that scores are what they were.
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
        positions: MACs of one sample per number of it (times it is used as a factor); 0 for vectors.
        axes: of every group that touches it.
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
        groups: its MACs are ``macs`` times kept / units of each of them.
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
    """

    name: str
    macs: int
    params: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMap:
    """Every group of a model, and what belongs to it.

    Attributes:
        groups: by name, in execution order of their first producers; frozen ones too.
        tensors: by name; those that a group which can be slimmed touches.
        products: of activations, those that such a group changes.
        blocks: by name, in execution order.
        norms: batch norm that alone reads a layer without bias, by layer name: it takes up a mean that moves
            when that layer is fitted anew, so that the layer needs no bias.
    """

    groups: Mapping[str, GroupSpec] = field(default_factory=dict)
    tensors: Mapping[str, TensorSpec] = field(default_factory=dict)
    products: tuple[ProductSpec, ...] = ()
    blocks: Mapping[str, BlockSpec] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
