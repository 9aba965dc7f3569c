# SPDX-License-Identifier: Apache-2.0
"""What a plan asks to be fitted, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from torch import Tensor

from slimrank.cost import consumer_gains_bias, slimmed_spec
from slimrank.fitting._stays import channels_left, what_stays
from slimrank.plan import Plan, Step, is_inside
from slimrank.records import LayerKind, LayerSpec, Setting

_CONVOLUTIONS: Mapping[int, LayerKind] = MappingProxyType({1: "conv1d", 2: "conv2d", 3: "conv3d"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One layer that is fitted.

    Attributes:
        spec: of the layer in the original, as rows are taken from it (``as_rows``).
        slimmed: the same, once its channels are gone.
        shape: of its weight then.
        channels: (C_out',) int64, of the channels that it makes, those that stay; None where all do.
        groups: blocks on the diagonal of its matrix, once channels are gone.
        is_transposed: whether it is a transposed convolution; else O below is C_out.
        setting: the pair that takes its place; None where it stays one layer.
        columns: (D',) int64, of the D columns of its weight, those that stay; None where all do.
        outputs: (O',) int64, of its O outputs, those that stay; None where all do.
        scales: (O',) float64, what these are multiplied by: queries of heads that get narrower; None for 1.
        norm: the batch norm that takes up a mean that moves; None where the layer has, or gets, a bias.
    """

    spec: LayerSpec
    slimmed: LayerSpec
    shape: tuple[int, ...]
    channels: Tensor | None
    groups: int
    is_transposed: bool
    setting: Setting | None
    columns: Tensor | None
    outputs: Tensor | None
    scales: Tensor | None
    norm: str | None

    def rows_of(self, values: Tensor) -> Tensor:
        """Of (O, ...) values, those of the outputs that stay; values of no dimension count for all."""
        return values if self.outputs is None or not values.ndim else values[self.outputs.to(values.device)]

    def last_of(self, values: Tensor) -> Tensor:
        """Of (..., O) values, those of the outputs that stay."""
        return values if self.outputs is None else values[..., self.outputs.to(values.device)]

    def wanted(self, outputs: Tensor) -> Tensor:
        """What the slimmed layer gives, (..., O'), by what the original gives, (..., O)."""
        return scaled(self.last_of(outputs), self.scales)

    def gram_of(self, gram: Tensor | None) -> Tensor | None:
        """Second moments of gradients of the channels that stay, by those of the original, (C_out, C_out)."""
        if gram is None:
            return None
        if self.channels is not None:
            channels = self.channels.to(gram.device)
            gram = gram[channels][:, channels]
        if self.scales is None:
            return gram
        inverse = self.scales[:: len(self.scales) // len(gram)].reciprocal()
        return scaled(scaled(gram.T, inverse).T, inverse)

    @property
    def n_channels(self) -> int:
        """C_out'."""
        return self.shape[1 if self.is_transposed else 0]


def work_of(plan: Plan) -> Mapping[str, Work]:
    """The layers that are fitted when the last step of a plan is done, in execution order.

    They are those that a pair takes the place of, those that lose columns, and those behind a dropped block.

    Args:
        plan: the plan.

    Returns:
        Work by layer name.
    """
    if not plan.steps:
        return {}
    step = plan.steps[-1]
    channels = step.structure.channels
    readers = _refitted(step)
    work: dict[str, Work] = {}
    for name, spec in step.structure.layers.items():
        if name not in plan.settings and name not in readers:
            continue
        setting = plan.settings.get(name)
        outputs, columns, scales = what_stays(channels, spec, step.groups)
        slimmed = slimmed_spec(spec, channels, step.groups)
        work[name] = Work(
            spec=as_rows(spec),
            slimmed=as_rows(slimmed),
            shape=slimmed.weight_shape,
            channels=channels_left(channels, spec, step.groups),
            groups=slimmed.groups,
            is_transposed=spec.is_transposed,
            setting=setting,
            columns=columns,
            outputs=outputs,
            scales=scales,
            norm=channels.norms.get(name) if setting is None else None,
        )
    return work


def as_rows(spec: LayerSpec) -> LayerSpec:
    """A layer as rows of inputs are taken from it, and its matrix fitted to them.

    Args:
        spec: the layer.

    Returns:
        The layer itself; a convolution in groups as one that reads all channels; for a transposed convolution
        the 1x1 convolution, to every tap of every output, that it is before its taps are added up.
    """
    if spec.groups > 1:
        rows, columns, *taps = spec.weight_shape
        shape = (rows, columns * spec.groups, *taps)
        return replace(spec, groups=1, weight_shape=shape, macs=spec.macs * spec.groups)
    if not spec.is_transposed:
        return spec
    inputs, outputs, *kernel = spec.weight_shape
    ones = (1,) * len(kernel)
    return replace(
        spec,
        kind=_CONVOLUTIONS[len(kernel)],
        weight_shape=(outputs * prod(kernel), inputs, *ones),
        stride=ones,
        dilation=ones,
        padding="valid",
    )


def scaled(outputs: Tensor, scales: Tensor | None) -> Tensor:
    """(..., O') outputs times (O',) scales, in the dtype and on the device of the outputs."""
    return outputs if scales is None else outputs * scales.to(outputs)


def _refitted(step: Step) -> frozenset[str]:
    """Layers that are fitted anew: those that lose columns, and those behind a dropped block."""
    groups = step.structure.channels.groups
    narrowed = {
        name
        for group, units in step.groups.items()
        if len(units) < groups[group].units
        for name in groups[group].consumers
        if not is_inside(name, step.dropped)
    }
    return frozenset(narrowed | _behind_drops(step))


def _behind_drops(step: Step) -> set[str]:
    """Layers behind dropped blocks that read the channels which these blocks added to."""
    if not step.dropped:
        return set()
    layers, channels = step.structure.layers, step.structure.channels
    order = {name: place for place, name in enumerate(layers)}
    first = min(place for name, place in order.items() if is_inside(name, step.dropped))
    streams = [
        group
        for group in channels.groups.values()
        if {is_inside(name, step.dropped) for name in group.producers} == {True, False}
    ]
    return {
        name
        for group in streams
        for name in group.consumers
        if order[name] > first and not is_inside(name, step.dropped)
        # A dropped block changes no channels, so nobody counted a bias that would be new here.
        if layers[name].has_matrix and not consumer_gains_bias(layers[name], channels, plan_has_bias=True)
    }
