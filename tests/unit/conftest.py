# SPDX-License-Identifier: Apache-2.0
"""Channel maps written by hand, for what slims models whoever read the groups."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from torch import nn

from slimrank.records import AxisUnits, ChannelMap, GroupSpec, Role, TensorSpec

Axis = tuple[str, int, Role, Sequence[int]]
MapOf = Callable[[nn.Module, Sequence[GroupSpec], Mapping[str, Sequence[Axis]]], ChannelMap]


@pytest.fixture
def map_of() -> MapOf:
    """A map of groups and, by tensor, (group, dimension, role, unit of each index)."""

    def build(
        model: nn.Module, groups: Sequence[GroupSpec], axes: Mapping[str, Sequence[Axis]]
    ) -> ChannelMap:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        every = {**dict(model.named_buffers(remove_duplicate=False)), **parameters}
        return ChannelMap(
            groups={group.name: group for group in groups},
            tensors={
                name: TensorSpec(
                    name=name,
                    shape=tuple(every[name].shape),
                    itemsize=every[name].element_size(),
                    is_parameter=name in parameters,
                    positions=0,
                    axes=tuple(
                        AxisUnits(group=group, dim=dim, role=role, units=tuple(units))
                        for group, dim, role, units in rows
                    ),
                )
                for name, rows in axes.items()
            },
        )

    return build


@pytest.fixture
def group_of() -> Callable[..., GroupSpec]:
    """A group by name and number of units; the rest by keyword."""

    def build(name: str, units: int, **fields: object) -> GroupSpec:
        given = {"unit_width": 1, "producers": (), "consumers": ()} | fields
        return GroupSpec(name=name, units=units, **given)

    return build
