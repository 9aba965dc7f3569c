# SPDX-License-Identifier: Apache-2.0
"""The measurements of channel groups, each kept on disk as it is done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from slimrank._names import listed
from slimrank.calibrate import Chunk, Collecting, moment_chunks, states_of
from slimrank.cost import matrix_tensor, slimmed_spec, working_bytes
from slimrank.fitting import channels_left, scaled, state_fits, what_stays
from slimrank.forward import Trimmer, out_of_memory_at
from slimrank.linalg import (
    Consumer,
    Moments,
    Removal,
    diagonal_blocks,
    narrowed_weight,
    ridge_of,
    times_vector,
)
from slimrank.measured import read_group, write_group
from slimrank.methods import (
    anchor_counts,
    anchored_group_curve,
    group_curve,
    inner_removal,
    metric_root,
    relative_group_curve,
    removal_by_order,
    restricted_gram,
)
from slimrank.records import ChannelMap, ChannelOrder, GroupCurve, GroupSpec, LayerSpec, Note
from slimrank.surgery import (
    bias_of,
    bias_of_taps,
    dense_weight,
    set_parameters,
    set_weights,
    slim,
    tap_shares,
)
from slimrank.survey._anchors import Anchors
from slimrank.survey._effort import effort_row
from slimrank.survey._session import Run, Session
from slimrank.survey._told import tell_group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupSurvey:
    """What measuring groups draws on.

    Attributes:
        session: model, data and options.
        layers: by name, in execution order.
        channels: groups and blocks of the model.
        grams: second moments of output gradients by layer; may lack some.
        blind: layers that outputs depend on, though no gradient reaches them.
    """

    session: Session
    layers: Mapping[str, LayerSpec]
    channels: ChannelMap
    grams: Mapping[str, Tensor]
    blind: frozenset[str] = frozenset()

    @property
    def slimmable(self) -> Mapping[int, GroupSpec]:
        """The groups that can be slimmed, by their index among all."""
        groups = enumerate(self.channels.groups.values())
        return {index: group for index, group in groups if group.reason is None}

    def units(self, layer: str, group: str, dim: int) -> tuple[int, ...]:
        """Units of a layer's outputs (dim 0) or inputs (1); () where these hold none of the group."""
        spec = self.layers.get(layer)
        tensor = None if spec is None else matrix_tensor(spec, self.channels)
        axes = () if tensor is None else tensor.axes
        weight_dim = 1 - dim if spec is not None and spec.is_transposed else dim
        return next((axis.units for axis in axes if axis.group == group and axis.dim == weight_dim), ())

    def readers(self, group: GroupSpec) -> tuple[str, ...]:
        """Layers whose columns belong to a group, whether they can be fitted anew or not."""
        return tuple(
            name for name in self.layers if self.units(name, group.name, 1) and self._has_rows(name, group)
        )

    def feeds_back(self, name: str, group: GroupSpec) -> bool:
        """Whether a layer reads a group that it gave one step before, and its states are known."""
        tensor = self.channels.tensors.get(f"{name}.weight_hh_l0")
        spec = self.layers.get(name)
        if tensor is None or spec is None or not spec.has_states or not spec.calls:
            return False
        return any(axis.group == group.name and axis.role == "input" for axis in tensor.axes)

    def notes(self) -> list[Note]:
        """What the user should know of how channels were ordered."""
        options = self.session.options
        if options.data_free or options.channel_order != "obs":
            return []
        blind = [group.name for group in self.slimmable.values() if not self.layers_needed(group)]
        if not blind:
            return []
        text = (
            "no layer that reads them can be fitted, so channels go by the norms of weights in "
            f"{len(blind)} of {len(self.slimmable)} groups: {listed(blind, 4)}"
        )
        return [Note(where="groups", text=text)]

    def _has_rows(self, name: str, group: GroupSpec) -> bool:
        """Whether rows of a layer's inputs are known; in groups or transposed, where it can be fitted."""
        spec = self.layers[name]
        is_plain = spec.kind != "other" and spec.has_matrix and spec.groups == 1 and bool(spec.calls)
        return is_plain or name in group.consumers

    def layers_needed(self, group: GroupSpec) -> dict[int, LayerSpec]:
        """Layers whose input moments a group needs, by their index in the study."""
        names = {*self.readers(group), *(group.producers if group.is_inner else ())}
        own = {name for name in group.producers if self.feeds_back(name, group)}
        return {
            index: spec
            for index, (name, spec) in enumerate(self.layers.items())
            if name in own or (name in names and self._has_rows(name, group))
        }


def stored_groups(survey: GroupSurvey, run: Run) -> dict[int, GroupCurve]:
    """Curves that an earlier run left, by index of the group."""
    if run.store is None:
        return {}
    found = {index: read_group(run.store, index, group) for index, group in survey.slimmable.items()}
    return {index: curve for index, curve in found.items() if curve is not None}


def measure_groups(survey: GroupSurvey, moments: Mapping[str, Moments], run: Run) -> tuple[GroupCurve, ...]:
    """Curves of every group that can be slimmed.

    Args:
        survey: model, data and map.
        moments: of inputs by layer, as far as they were gathered before.
        run: progress, and where measurements are kept.

    Returns:
        Curves in the order of the map.
    """
    slimmable = survey.slimmable
    curves = stored_groups(survey, run)
    rest = {index: group for index, group in slimmable.items() if index not in curves}
    if survey.session.options.data_free:
        for index, group in rest.items():
            curves[index] = _weight_curve(survey, group)
        return tuple(curves[index] for index in sorted(curves))
    # Sized for all groups, also those of an earlier run: where that stopped must not change the numbers.
    n_shares = len(effort_row(survey.session.options).anchor_shares)
    anchors = Anchors(survey.session, n_shares * len(slimmable) if rest else 0)
    trim = Trimmer(survey.session.budgets.freed)
    for chunk in group_chunks(survey, rest, run.collecting(survey.session), moments):
        with run.phases.phase("groups", len(chunk.indices)) as advance:
            for index in chunk.indices:
                group = rest[index]
                with out_of_memory_at(f"channel group {group.name!r}"):
                    curves[index] = _curve(survey, group, chunk.moments, anchors, run)
                if run.kept_in is not None:
                    write_group(run.kept_in, index, curves[index])
                tell_group(run.phases, curves[index], group.units)
                trim.after(sum(working_bytes(spec) for spec in survey.layers_needed(rest[index]).values()))
                advance(1)
    return tuple(curves[index] for index in sorted(curves))


def group_chunks(
    survey: GroupSurvey,
    groups: Mapping[int, GroupSpec],
    collecting: Collecting,
    moments: Mapping[str, Moments] | None = None,
) -> Iterator[Chunk]:
    """Moments that groups need, for as many groups at a time as fit into memory.

    Args:
        survey: model, data and map.
        groups: by their index in the map.
        collecting: opened around each pass over the samples, as in ``moment_chunks``.
        moments: by layer, as far as they were gathered before.

    Returns:
        Chunks of the groups, in the same order; without moments where the study has no data.
    """
    session = survey.session
    has_data = not session.options.data_free
    return moment_chunks(
        session.original,
        session.feed,
        {index: survey.layers_needed(group) if has_data else {} for index, group in groups.items()},
        seed=session.options.seed,
        max_bytes=session.budgets.group_moments,
        collecting=collecting,
        known=moments,
    )


def _consumers(survey: GroupSurvey, group: GroupSpec, moments: Mapping[str, Moments]) -> list[Consumer]:
    """The layers that read a group, as far as anything is known of their inputs."""
    consumers = []
    readers = survey.readers(group)
    # Errors of layers that gradients reach, and of one that none does, have no common scale.
    grams = {} if survey.blind.intersection(readers) else survey.grams
    for name in readers:
        if name not in moments:
            continue
        layer = survey.session.original.get_submodule(name)
        weight, spec = dense_weight(layer), survey.layers[name]
        gram = grams.get(name)
        layer_moments = moments[name].about_zero() if spec.is_transposed else moments[name]
        units = _columns(survey, name, group.name, weight.shape[1] // spec.groups)
        if spec.groups > 1:
            for rows, columns in diagonal_blocks(weight, spec.groups):
                block_gram = None if gram is None else restricted_gram(gram, rows)
                consumers.append(
                    Consumer(
                        weight=weight[rows][:, columns],
                        moments=layer_moments.block(columns),
                        root=metric_root(block_gram, len(rows), weight.device),
                        unit_of=units,
                    )
                )
            continue
        root = metric_root(gram, spec.n_outputs, weight.device)
        if spec.is_transposed:
            # A row of inputs takes part in some of the outputs that the gradients were summed over.
            root = root * tap_shares(layer, spec.calls).mean().sqrt()
        consumers.append(Consumer(weight=weight, moments=layer_moments, root=root, unit_of=units))
    return consumers


def _own_readers(survey: GroupSurvey, group: GroupSpec, moments: Mapping[str, Moments]) -> Iterator[Consumer]:
    """Recurrent matrices that read a group, for the order of its units: they are not fitted anew.

    Gates see them as they see the input matrix, so its output metric is theirs. What a layer gives stands for
    what it read one step before. Of several layers in one module, only the gates of the first are known, so
    that such a module is left out.
    """
    for name in group.producers:
        if not survey.feeds_back(name, group) or states_of(name, 0) not in moments:
            continue
        layer, gram = survey.session.original.get_submodule(name), survey.grams.get(name)
        if (gram is None and survey.grams) or states_of(name, 1) in moments:
            # Beside readers whose metric is known, one without any would count too much or too little.
            continue
        unit_of = next(
            axis.units
            for axis in survey.channels.tensors[f"{name}.weight_hh_l0"].axes
            if axis.group == group.name and axis.role == "input"
        )
        units = torch.tensor(unit_of, dtype=torch.int64)
        first_row = 0
        for direction, key in enumerate(("weight_hh_l0", "weight_hh_l0_reverse")):
            weight = layer._parameters.get(key)
            if weight is None:
                continue
            rows = torch.arange(first_row, first_row + len(weight))
            first_row += len(weight)
            columns = torch.arange(len(units)) + direction * len(units)
            block_gram = None if gram is None else restricted_gram(gram, rows)
            yield Consumer(
                weight=weight.detach().double(),
                moments=moments[states_of(name, 0)].block(columns),
                root=metric_root(block_gram, len(rows), weight.device),
                unit_of=units,
            )


def _columns(survey: GroupSurvey, layer: str, group: str, n_columns: int) -> Tensor:
    """Unit of every column of a layer's weight as a matrix, (D,) int64; -1 for none."""
    units = torch.tensor(survey.units(layer, group, 1), dtype=torch.int64)
    return units.repeat_interleave(n_columns // max(len(units), 1))


def _removal(
    survey: GroupSurvey, group: GroupSpec, moments: Mapping[str, Moments], consumers: Sequence[Consumer]
) -> Removal:
    """The order in which units go, and what that costs."""
    order = survey.session.options.channel_order
    if group.is_inner and order == "obs":
        variances, unit_maps = [], []
        for name in group.producers:
            units = survey.units(name, group.name, 0)
            if name in moments and units and not survey.layers[name].is_transposed:
                weight = dense_weight(survey.session.original.get_submodule(name))
                variances.append(moments[name].diagonal_of(weight).double())
                unit_maps.append(torch.tensor(units, dtype=torch.int64))
        if variances:
            return inner_removal(variances, unit_maps, group.units)
    generator = torch.Generator().manual_seed(survey.session.options.seed)
    if consumers:
        return removal_by_order(order, consumers, group.units, generator=generator)
    plain: ChannelOrder = "magnitude" if order == "obs" else order
    return removal_by_order(plain, _plain_consumers(survey, group), group.units, generator=generator)


def _plain_consumers(survey: GroupSurvey, group: GroupSpec) -> list[Consumer]:
    """Whatever reads a group, or else makes it, as weights about whose inputs nothing is known."""
    tensors = dict(survey.session.original.named_parameters())
    axes = [
        (tensors[tensor.name].detach().double(), axis)
        for tensor in survey.channels.tensors.values()
        for axis in tensor.axes
        if axis.group == group.name and tensor.name in tensors and len(tensor.shape) > 1
    ]
    readers = [(tensor, axis) for tensor, axis in axes if axis.role == "input"] or axes
    consumers = []
    for tensor, axis in readers:
        weight = tensor.movedim(axis.dim, -1).reshape(-1, tensor.shape[axis.dim])
        # One output is enough: with neither metric nor moments only the norms of columns count.
        weight = weight.norm(dim=0, keepdim=True)
        consumers.append(
            Consumer(
                weight=weight,
                moments=Moments.identity(weight.shape[1], weight.device),
                root=torch.ones((1, 1), dtype=torch.float64, device=weight.device),
                unit_of=torch.tensor(axis.units, dtype=torch.int64),
            )
        )
    return consumers


def _weight_curve(survey: GroupSurvey, group: GroupSpec) -> GroupCurve:
    """The curve of a group from the weights alone."""
    removal = _removal(survey, group, {}, ())
    return relative_group_curve(group_curve(group, removal), removal)


def _curve(
    survey: GroupSurvey, group: GroupSpec, moments: Mapping[str, Moments], anchors: Anchors, run: Run
) -> GroupCurve:
    """The curve of a group, anchored by measured divergences."""
    consumers = _consumers(survey, group, moments)
    consumers += _own_readers(survey, group, moments)
    curve = group_curve(group, _removal(survey, group, moments, consumers))
    owners = _owners(survey, group)
    start = next((name for name, spec in survey.layers.items() if name in owners and spec.calls), None)
    with run.phases.part("anchors", of="groups"):
        if start is None or "" in owners:
            anchors.start_anew()
        else:
            anchors.start_at(start, owners)
        measured = {
            count: anchors.divergence_with(partial(_slim_alone, survey, curve, count, moments))
            for count in anchor_counts(curve, effort_row(survey.session.options).anchor_shares)
        }
    return anchored_group_curve(curve, measured)


def _owners(survey: GroupSurvey, group: GroupSpec) -> tuple[str, ...]:
    """Modules that hold tensors of a group; "" is the model itself."""
    return tuple(
        dict.fromkeys(
            tensor.name.rpartition(".")[0]
            for tensor in survey.channels.tensors.values()
            if any(axis.group == group.name for axis in tensor.axes)
        )
    )


def _slim_alone(
    survey: GroupSurvey, curve: GroupCurve, count: int, moments: Mapping[str, Moments], model: nn.Module
) -> None:
    """Slims one group, its consumers fitted to the inputs of the original (in place)."""
    kept = curve.channels_kept(count)
    fits = fits_alone(survey, curve.group, kept, moments)
    states = state_fits(survey.session.original, survey.channels, {curve.group: kept}, moments)
    slim(model, survey.channels, {curve.group: kept})
    set_parameters(model, states)
    for name, (weight, bias) in fits.items():
        set_weights(model.get_submodule(name), weight, bias)


def fits_alone(
    survey: GroupSurvey, group: str, kept: Sequence[int], moments: Mapping[str, Moments]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the consumers of one group become when it alone is slimmed, fitted to the original's inputs.

    Args:
        survey: model and map.
        group: its name.
        kept: units that stay, ascending.
        moments: of the inputs of its consumers, by layer; those that are missing are not fitted.

    Returns:
        Weight, (O', D'), and bias, (O',) float64, by layer: of the columns and outputs that stay.
    """
    slimmed = {group: kept}
    fits = {}
    for name in survey.channels.groups[group].consumers:
        spec = survey.layers[name]
        outputs, columns, scales = what_stays(survey.channels, spec, slimmed)
        if name not in moments or columns is None:
            continue
        layer, layer_moments = survey.session.original.get_submodule(name), moments[name]
        # A consumer may make channels of the same group as well: then it loses outputs, too.
        weight = dense_weight(layer) if outputs is None else dense_weight(layer)[outputs]
        n_groups = slimmed_spec(spec, survey.channels, slimmed).groups
        narrow, _ = narrowed_weight(
            weight,
            layer_moments.about_zero() if spec.is_transposed else layer_moments,
            columns,
            ridge=ridge_of(layer_moments.n_rows, len(columns) // n_groups),
            n_groups=n_groups,
        )
        mean = layer_moments.mean
        bias = times_vector(weight, mean) - times_vector(narrow, mean[columns.to(mean.device)])
        if spec.is_transposed:
            bias = bias_of_taps(layer, spec.calls, bias)
        old_bias = bias_of(layer)
        if old_bias is not None:
            old_bias = old_bias.double()
            channels = channels_left(survey.channels, spec, slimmed)
            bias = bias + (old_bias if channels is None else old_bias[channels])
        bias_scales = None if scales is None else scales[:: len(narrow) // len(bias)]
        fits[name] = (scaled(narrow.T, scales).T, scaled(bias, bias_scales))
    return fits
