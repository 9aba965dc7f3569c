# SPDX-License-Identifier: Apache-2.0
"""What a plan asks to be fitted, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from slimrank.cost import consumer_gains_bias, slimmed_spec
from slimrank.fitting._stays import channels_left, what_stays
from slimrank.methods import restricted_gram
from slimrank.plan import Plan, Step, is_inside
from slimrank.records import LayerSpec, Setting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTask:
    """One layer that is fitted; its matrix is (O, D), as ``slimrank.cost.row_view`` sees it.

    Attributes:
        spec: of the layer in the original.
        slimmed: the same, once its channels are gone.
        channels: (C_out',) int64, of the channels that it makes, those that stay; None where all do.
        setting: the pair that takes its place; None where it stays one layer.
        columns: (D',) int64, of the D columns of its weight, those that stay; None where all do.
        outputs: (O',) int64, of its O outputs, those that stay; None where all do.
        scales: (O',) float64, what these are multiplied by: queries of heads that get narrower; None for 1.
        norm: the batch norm that takes up a mean that moves; None where the layer has, or gets, a bias.
    """

    spec: LayerSpec
    slimmed: LayerSpec
    channels: Tensor | None
    setting: Setting | None
    columns: Tensor | None
    outputs: Tensor | None
    scales: Tensor | None
    norm: str | None

    def staying_rows(self, values: Tensor) -> Tensor:
        """Of (O, ...) values, those of the outputs that stay; a number counts for all of them."""
        return values if self.outputs is None or not values.ndim else values[self.outputs.to(values.device)]

    def staying_columns(self, values: Tensor) -> Tensor:
        """Of (..., O) values, those of the outputs that stay."""
        return values if self.outputs is None else values[..., self.outputs.to(values.device)]

    def slimmed_outputs(self, outputs: Tensor) -> Tensor:
        """What the slimmed layer gives, (..., O'), by what the original gives, (..., O)."""
        return scaled(self.staying_columns(outputs), self.scales)

    def slimmed_gram(self, gram: Tensor | None) -> Tensor | None:
        """Second moments of gradients of the channels that stay, by those of the original."""
        if gram is None:
            return None
        if self.channels is not None:
            gram = restricted_gram(gram, self.channels)
        if self.scales is None:
            return gram
        inverse = self.scales[:: len(self.scales) // len(gram)].reciprocal()
        if gram.ndim == 1:
            return scaled(gram, inverse.square())
        return scaled(scaled(gram.T, inverse).T, inverse)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its weight, once channels are gone."""
        return self.slimmed.weight_shape

    @property
    def n_groups(self) -> int:
        """Groups of its convolution, once channels are gone: blocks on the diagonal of its matrix."""
        return self.slimmed.groups

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution: then O is C_out times the taps, else C_out."""
        return self.spec.is_transposed

    @property
    def n_channels(self) -> int:
        """C_out'."""
        return self.slimmed.n_outputs


def layer_tasks(plan: Plan) -> Mapping[str, LayerTask]:
    """The layers that are fitted when the last step of a plan is done, in execution order.

    They are those that a pair takes the place of, those that lose columns, and those behind a dropped block.

    Args:
        plan: the plan.

    Returns:
        LayerTask by layer name.
    """
    if not plan.steps:
        return {}
    step = plan.steps[-1]
    channels = step.structure.channels
    readers = _refitted(step)
    tasks: dict[str, LayerTask] = {}
    for name, spec in step.structure.layers.items():
        if name not in plan.settings and name not in readers:
            continue
        setting = plan.settings.get(name)
        outputs, columns, scales = what_stays(channels, spec, step.groups)
        slimmed = slimmed_spec(spec, channels, step.groups)
        tasks[name] = LayerTask(
            spec=spec,
            slimmed=slimmed,
            channels=channels_left(channels, spec, step.groups),
            setting=setting,
            columns=columns,
            outputs=outputs,
            scales=scales,
            norm=channels.norms.get(name) if setting is None else None,
        )
    return tasks


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
    order = {name: index for index, name in enumerate(layers)}
    first = min(index for name, index in order.items() if is_inside(name, step.dropped))
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
