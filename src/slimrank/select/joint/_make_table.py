# SPDX-License-Identifier: Apache-2.0
"""From a source of curves to everything that may be chosen together.

A second way to count what ``cost.model_cost`` counts, for all widths at once: costs are added up into tables
by the groups they go with, before the search, so that the search only looks them up. Property tests tie the
two.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import ceil, log2, prod

import numpy as np

from slimrank._errors import LatencyError, NonFiniteError
from slimrank.cost import (
    at_multiples,
    consumer_gains_bias,
    factor_costs,
    group_is_inside,
    layer_cost,
    least_shape,
    matrix_names,
    matrix_tensor,
    middle_cost,
    pair_has_bias,
)
from slimrank.plan import (
    NOTHING_FIXED,
    Fixed,
    Multiples,
    PlanSource,
    Rounding,
    is_inside,
    multiple_for,
    stacks_in,
)
from slimrank.records import (
    LATENCY,
    AxisUnits,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    Limited,
    NetworkTimes,
    Setting,
    TensorSpec,
    replaces_groups,
    step_edge,
)
from slimrank.select._option_costs import Costing
from slimrank.select.joint._counts import Dim, Dims, Widths, tied, widths_of
from slimrank.select.joint._grids import Grids
from slimrank.select.joint._layer_grids import LayerGrids
from slimrank.select.joint._pieces import (
    MAX_TABLE_GROUPS,
    Block,
    FitPiece,
    JointLayer,
    Piece,
    ProductPiece,
    Ranks,
    TensorPiece,
)
from slimrank.select.joint._table import Joint, Key, Standing, Touching
from slimrank.select.layers._table import Floats, Ints, safe_damage

# Options of one curve with two ranks that a search looks at. More fill a budget better, and each is one more
# form of its layer in every look.
_MAX_PARTS = 16
# What a curve holds of each option.
_ARRAYS = ("ranks", "macs", "params", "bytes", "error", "damage")


def joint_of(
    source: PlanSource,
    limits: Mapping[Limited, float],
    *,
    methods: Collection[str],
    skipped: Collection[str],
    rounding: Rounding,
    times: NetworkTimes | None = None,
    fixed: Fixed = NOTHING_FIXED,
    uniform_widths: bool = False,
) -> Joint:
    """Everything that a source offers.

    Args:
        source: curves, damages and structure.
        limits: metric -> largest cost allowed for the whole model.
        methods: that may be used.
        skipped: layers, groups and blocks to leave alone.
        rounding: what ranks, and outputs of a group's first producer, are multiples of.
        times: that a latency among the limits is counted by.
        fixed: what is not chosen any more. It is no part of the table but counted in its room, and wins over
            ``skipped`` and ``rounding``. Blocks around it stay.
        uniform_widths: groups of one stack keep the same number of units (``stacks_in``), and blocks stay.

    Returns:
        The table.

    Raises:
        NonFiniteError: a curve or a block holds nan or inf.
        LatencyError: a fixed pair that there are no times of.
    """
    takes_groups = any(replaces_groups(method) for method in methods)
    channels = source.structure.channels
    offered = offered_groups(channels, skipped) if takes_groups else frozenset[str]()
    offered -= {*fixed.groups, *fixed.whole}
    offered -= {group for group in offered if group_is_inside(channels, group, fixed.dropped)}
    widths = [
        _widths(curve, channels.groups[curve.group], rounding.widths)
        for curve in source.group_curves
        if curve.group in offered
    ]
    if uniform_widths:
        widths = _by_stack(widths, source.structure.channels)
    open_widths = [group for group in widths if len(group.kept) > 1]
    costing = Costing(limits, times)
    for name, setting in fixed.settings.items():
        if not costing.offers(source.structure.layers[name], setting.form):
            raise LatencyError(
                f"fixed: layer {name!r}: the table has no times of {setting.method} {setting.form}; measure "
                "it with slimrank.measure_latency, or do not fix this layer"
            )
    maker = _TableMaker(source, costing, open_widths, methods, skipped, fixed, keeps_blocks=uniform_widths)
    fits = maker.fits(limits)
    if fits:
        narrowed = [_fitting(group, index, len(open_widths), fits) for index, group in enumerate(open_widths)]
        open_widths = [group for group in narrowed if len(group.kept) > 1]
        maker = _TableMaker(
            source, costing, open_widths, methods, skipped, fixed, keeps_blocks=uniform_widths
        )
        fits = [fit for fit in maker.fits(limits) if fit.groups]
    return _joint(source, limits, maker, open_widths, methods, skipped, rounding.ranks, fits)


def _fitting(group: Widths, index: int, groups: int, fits: Sequence[FitPiece]) -> Widths:
    """A group without the widths that a fixed pair rules out, whatever the others are."""
    along: list[int | Ints] = [-1] * groups
    along[index] = np.arange(len(group.kept))
    good = np.ones(len(group.kept), dtype=np.bool_)
    for fit in fits:
        if index in fit.groups:
            good &= fit.fits(along)
    return replace(group, kept=group.kept[good], damage=group.damage[good])


def offered_groups(channels: ChannelMap, skipped: Collection[str]) -> frozenset[str]:
    """Groups whose channels may go: skipped layers keep their weights, rows and columns alike."""
    kept_whole = {
        axis.group
        for tensor in channels.tensors.values()
        if tensor.name.rpartition(".")[0] in skipped
        for axis in tensor.axes
    }
    return frozenset(
        name
        for name, group in channels.groups.items()
        if group.reason is None
        and name not in kept_whole
        and not any(layer in skipped for layer in (name, *group.producers))
    )


def _by_stack(widths: Sequence[Widths], channels: ChannelMap) -> list[Widths]:
    """The groups of each stack as one choice; a stack of which one group cannot go is left out."""
    open_groups = {group.name: group for group in widths}
    return [
        tied([open_groups[name] for name in names])
        for names in stacks_in(channels)
        if all(name in open_groups for name in names)
    ]


def _widths(curve: GroupCurve, group: GroupSpec, multiples: Multiples) -> Widths:
    if not np.isfinite(curve.damage).all():
        raise NonFiniteError(
            f"group {curve.group!r}: its damage is nan or inf; measure the study again with finite data, or "
            f"skip this group"
        )
    good = curve.kept * group.unit_width % multiple_for(multiples, curve.group) == 0
    return widths_of(curve.group, group.units, curve.order, curve.kept[good], curve.damage[good])


def _joint(
    source: PlanSource,
    limits: Mapping[Limited, float],
    maker: "_TableMaker",
    widths: Sequence[Widths],
    methods: Collection[str],
    skipped: Collection[str],
    multiples: Multiples,
    fits: Sequence[FitPiece],
) -> Joint:
    curves: list[Curve] = []
    layers: list[JointLayer] = []
    curves_of: dict[str, list[Curve]] = {}
    for curve in source.curves:
        if curve.method in methods and curve.layer not in skipped:
            curves_of.setdefault(curve.layer, []).append(curve)
    for name, spec in source.structure.layers.items():
        has_bias = pair_has_bias(spec, plan_has_bias=source.has_bias)
        layer_curves = [
            part
            for curve in (() if maker.is_settled(name) else curves_of.get(name, ()))
            for part in _parts(at_multiples(spec, curve, multiple_for(multiples, name), has_bias=has_bias))
        ]
        forms = [
            _ranks(spec, curve, maker.costing, len(curves) + index)
            for index, curve in enumerate(layer_curves)
            if maker.costing.offers(spec, curve.form)
        ]
        offered = tuple(form for form in forms if len(form.ranks))
        if offered:
            layers.append(maker.layer(spec, offered))
            curves.extend(layer_curves)
    open_layers = {layer.spec.name for layer in layers}
    whole = [len(group.kept) - 1 for group in widths]
    every = maker.pieces(open_layers)
    pieces = [*(piece for piece in every if piece.groups), *fits]
    # Of the model as it stands: what is in no group stays as it is, or as it is fixed.
    standing = every if maker.as_it_stands is maker else maker.as_it_stands.pieces(open_layers)
    full = [(piece.blocks, piece.cost(whole)) for piece in standing]
    full += [(layer.blocks, maker.costing.whole_layer(layer.spec)) for layer in layers]
    full += [(piece.blocks, -piece.cost(whole)) for piece in every if not piece.groups]
    total = sum((cost for _, cost in full), np.zeros(len(limits)))
    before = maker.costing.whole_model(source)
    sizes = [len(group.kept) for group in widths]
    grids = LayerGrids(layers, sizes, len(limits), maker.costing.latency)
    wide = tuple(piece for piece in pieces if len(piece.groups) > MAX_TABLE_GROUPS)
    cells = _cells(pieces, widths)
    layer_keys = [(tuple(sorted(layers[index].groups)), layers[index].blocks) for index in grids.narrow]
    keys = tuple(dict.fromkeys((*cells, *layer_keys)))
    tables = Grids([groups for groups, _ in keys], sizes)
    cost = np.zeros((int(tables.counts.sum()), len(limits)))
    starts = dict(zip(keys, (tables.counts.cumsum() - tables.counts).tolist(), strict=True))
    for key, cell in cells.items():
        cost[starts[key] : starts[key] + cell[..., 0].size] = cell.reshape(-1, len(limits))
    touching = _touching(keys, len(widths))
    # What more than two groups go with.
    many = [*wide, *(layers[index] for index in grids.wide)]
    homes, blocks = maker.homes(), maker.blocks(full)
    return Joint(
        metrics=maker.costing.metrics,
        widths=tuple(widths),
        whole=tuple(whole),
        homes=homes,
        blocks=blocks,
        layers=tuple(layers),
        grids=grids,
        keys=keys,
        tables=tables,
        cost=cost,
        entries=np.array([starts[key] for key in layer_keys], dtype=np.int64)[grids.table] + grids.own,
        touching=touching,
        linked=_linked(touching, [each.groups for each in many]),
        near=_near(touching, many),
        standing=Standing(
            homes, [layer.blocks for layer in layers], [inside for _, inside in keys], len(blocks)
        ),
        wide=wide,
        curves=tuple(curves),
        room=np.array([limits[metric] for metric in limits], dtype=np.float64)
        - (before + maker.change())
        + total,
        scale=np.maximum(before, 1.0),
        fits=tuple(fits),
    )


def _cells(pieces: Sequence[Piece], widths: Sequence[Widths]) -> dict[Key, Floats]:
    cells: dict[Key, Floats] = {}
    for piece in pieces:
        groups = tuple(sorted(piece.groups))
        if len(groups) > MAX_TABLE_GROUPS:
            continue
        indices: list[int | Ints] = [0] * len(widths)
        for axis, group in enumerate(groups):
            shape = [-1 if other == axis else 1 for other in range(len(groups))]
            indices[group] = np.arange(len(widths[group].kept)).reshape(shape)
        key = (groups, piece.blocks)
        cells[key] = cells.get(key, 0.0) + piece.cost(indices)
    return cells


def _touching(keys: Sequence[Key], groups: int) -> tuple[tuple[Touching, ...], ...]:
    """Of each group, the tables that go with it."""
    found: list[list[Touching]] = [[] for _ in range(groups)]
    for table, (own, blocks) in enumerate(keys):
        for axis, group in enumerate(own):
            other = own[1 - axis] if len(own) == MAX_TABLE_GROUPS else None
            found[group].append(Touching(table=table, axis=axis, other=other, blocks=blocks))
    return tuple(tuple(tables) for tables in found)


def _linked(
    touching: Sequence[Sequence[Touching]], wide: Sequence[frozenset[int]]
) -> tuple[tuple[int, ...], ...]:
    """Of each group, the others that it shares a table, or these groups of something wide, with."""
    found = [{table.other for table in tables if table.other is not None} for tables in touching]
    for groups in wide:
        for group in groups:
            found[group] |= groups - {group}
    return tuple(tuple(sorted(others)) for others in found)


def _near(
    touching: Sequence[Sequence[Touching]], wide: Sequence[Piece | JointLayer]
) -> tuple[frozenset[int], ...]:
    """Of each group, the blocks that hold any of its tables, or anything wide that goes with it."""
    found = [{block for table in tables for block in table.blocks} for tables in touching]
    for each in wide:
        for group in each.groups:
            found[group] |= set(each.blocks)
    return tuple(frozenset(blocks) for blocks in found)


def _parts(curve: Curve) -> list[Curve]:
    """A curve as it is; of two ranks, a few of its options, each as a curve of its own.

    What an option costs at other shapes is then that of any pair of its form: see ``CostParts``.
    """
    if curve.ranks_in is None:
        return [curve]
    # In even steps of what they cost: a search looks at every form of every layer.
    wanted = np.geomspace(max(curve.macs.min(initial=1), 1), max(curve.macs.max(initial=1), 1), _MAX_PARTS)
    places = np.unique(np.searchsorted(curve.macs, np.round(wanted)).clip(max=len(curve.ranks) - 1))
    return [
        replace(
            curve,
            ranks_in=curve.ranks_in[place : place + 1],
            **{array: getattr(curve, array)[place : place + 1] for array in _ARRAYS},
        )
        for place in places.tolist()
        if len(curve.ranks)
    ]


def _ranks(spec: LayerSpec, curve: Curve, costing: Costing, index: int) -> Ranks:
    both = None if curve.ranks_in is None else (int(curve.ranks_in[0]), int(curve.ranks[0]))
    damage, parts = safe_damage(curve), costing.cost_parts(spec, curve.form, both)
    columns, rows = least_shape(spec, curve.form, curve.ranks, curve.ranks_in)
    return Ranks(
        form=curve.form,
        curve=index,
        ranks=curve.ranks,
        damage=damage,
        least_columns=columns,
        least_rows=rows,
        column=parts.column,
        row=parts.row,
        each=parts.each,
        fixed=parts.fixed,
        any_column=parts.any_column,
        any_row=parts.any_row,
    )


class _TableMaker:
    """Makes pieces and layers of one source."""

    def __init__(
        self,
        source: PlanSource,
        costing: Costing,
        widths: Sequence[Widths],
        methods: Collection[str],
        skipped: Collection[str],
        fixed: Fixed = NOTHING_FIXED,
        *,
        keeps_blocks: bool,
    ) -> None:
        self.costing = costing
        self._source = source
        self._channels = source.structure.channels
        self._widths = tuple(widths)
        self._fixed = fixed
        self._dims = Dims(widths, fixed.groups)
        # The same without fixed widths and pairs: what stands before anything is done.
        self.as_it_stands = (
            _TableMaker(
                source,
                costing,
                widths,
                methods,
                skipped,
                replace(
                    fixed,
                    settings={},
                    groups={},
                    untouched=fixed.layers,
                    whole=fixed.whole | frozenset(fixed.groups),
                ),
                keeps_blocks=keeps_blocks,
            )
            if fixed.settings or fixed.groups
            else self
        )
        takes_groups = any(replaces_groups(method) for method in methods)
        self._offered = [
            damage
            for damage in source.block_damages
            if takes_groups
            and not keeps_blocks
            and damage.block in self._channels.blocks
            and damage.block not in skipped
            and not any(
                name in skipped or name in fixed.layers
                for name in source.structure.layers
                if is_inside(name, (damage.block,))
            )
            and not self._is_held(damage.block)
        ]
        self._let_fixed_groups_stand()
        self._place_of = {offered.block: index for index, offered in enumerate(self._offered)}
        for offered in self._offered:
            if not np.isfinite(offered.damage):
                raise NonFiniteError(
                    f"block {offered.block!r}: its damage is nan or inf; measure the study again with finite "
                    f"data, or skip this block"
                )
        self._consumed = self._consumers()
        self._slimmed = {
            name: None for group in fixed.groups for name in self._channels.groups[group].consumers
        }

    def _is_held(self, block: str) -> bool:
        """Whether a block is fixed itself, or stands because of another fixed one around or inside it."""
        gone = self._fixed.dropped
        return (
            block in self._fixed.standing
            or is_inside(block, gone)
            or any(is_inside(other, (block,)) for other in (*gone, *self._fixed.standing))
        )

    def _let_fixed_groups_stand(self) -> None:
        """Takes back blocks (in place) that together would take all of a group whose width is fixed."""
        for group in (*self._fixed.groups, *self._fixed.whole):
            names = tuple(offered.block for offered in self._offered)
            if group_is_inside(self._channels, group, (*names, *self._fixed.dropped)):
                self._offered = [
                    offered
                    for offered in self._offered
                    if not any(
                        is_inside(tensor.name, (offered.block,))
                        for tensor in self._channels.tensors.values()
                        if any(axis.group == group for axis in tensor.axes)
                    )
                ]

    def is_settled(self, name: str) -> bool:
        """Whether nothing is chosen for a layer: it is fixed, or gone with a fixed block."""
        return name in self._fixed.layers or self._is_gone(name)

    def _is_gone(self, name: str) -> bool:
        return bool(self._fixed.dropped) and is_inside(name, self._fixed.dropped)

    def change(self) -> Floats:
        """(B,) what fixed blocks and pairs change of the cost of the model, at full widths."""
        layers = self._source.structure.layers
        change = np.zeros(len(self.costing.metrics))
        for name in self._fixed.dropped:
            change -= self._block_cost(name)
        whole = [len(group.kept) - 1 for group in self._widths]
        for name in self._fixed.settings:
            # The tensors of the layer are pieces of the model as it stands, the pair is several of this one.
            change -= self.costing.whole_layer(layers[name])
            for piece in self.as_it_stands._dense(layers[name]):
                change += piece.cost(whole)
        return change

    def _dense(self, spec: LayerSpec) -> list[TensorPiece]:
        """A layer in one piece."""
        dense = [
            self._tensor(tensor)
            for name in matrix_names(spec)
            if (tensor := self._channels.tensors.get(name)) is not None
        ]
        return [*dense, *self._new_bias(spec), *self._dense_times(spec)]

    def _pair(self, spec: LayerSpec, setting: Setting) -> list[TensorPiece]:
        """A layer as its fixed pair."""
        both = None if setting.rank_in is None else (setting.rank_in, setting.rank)
        parts = self.costing.cost_parts(spec, setting.form, both)
        has_bias = pair_has_bias(spec, plan_has_bias=self._source.has_bias)
        bias = self.costing.number_cost(spec.itemsize) * has_bias
        counted = np.array([float(metric != LATENCY) for metric in self.costing.metrics])
        steps = self.costing.steps
        # A rank counts for times up to the next step, too.
        rank = np.where(counted > 0, setting.rank, step_edge(setting.rank, steps.rows))
        pieces = [self._constant(parts.fixed + rank * parts.each, self._inside(spec.name))]
        for dim, step, unit in (
            (self._columns_of_pair(spec), steps.columns, rank * parts.column + parts.any_column),
            (self._weight(spec)[0], steps.rows, rank * parts.row + parts.any_row + bias),
        ):
            # Times are stairs; what is counted is not.
            is_tabled = len(dim.groups) <= MAX_TABLE_GROUPS
            stairs = replace(dim, step=step) if is_tabled else dim
            for size, share in ((dim, unit * counted), (stairs, unit * (1 - counted))):
                if share.any():
                    pieces.append(
                        TensorPiece(
                            groups=size.groups, blocks=self._inside(spec.name), dims=(size,), unit=share
                        )
                    )
        return pieces

    def fits(self, limits: Mapping[Limited, float]) -> list[FitPiece]:
        """What fixed pairs forbid."""
        # A power of two is a multiple of the unit that times are rounded to.
        most = max(*limits.values(), *self.costing.whole_model(self._source).tolist(), 1.0)
        unit = np.full(len(self.costing.metrics), 2.0 ** (ceil(log2(most)) + 1))
        whole = [len(group.kept) - 1 for group in self._widths]
        found = []
        for name, setting in self._fixed.settings.items():
            spec = self._source.structure.layers[name]
            rows, columns = self._weight(spec)[0], self._columns_of_pair(spec)
            column, row = factor_costs(spec, setting.form)
            middle = middle_cost(spec, setting.form)
            rank_in = setting.rank if setting.rank_in is None else setting.rank_in
            ranks_in = None if setting.rank_in is None else np.array([setting.rank_in])
            least = least_shape(spec, setting.form, np.array([setting.rank]), ranks_in)
            found.append(
                FitPiece(
                    groups=rows.groups | columns.groups,
                    unit=unit,
                    rows=rows,
                    columns=columns,
                    inside=None if spec.groups == 1 else self._weight(spec)[1],
                    least=(int(least[0][0]), int(least[1][0])),
                    params=(
                        rank_in * setting.rank * middle.params,
                        rank_in * column.params,
                        setting.rank * row.params,
                    ),
                    macs=(
                        rank_in * setting.rank * middle.macs,
                        rank_in * column.macs,
                        setting.rank * row.macs,
                    ),
                    taps=prod(spec.kernel),
                    macs_of_number=layer_cost(spec).macs // max(prod(spec.weight_shape), 1),
                    whole=(int(rows.count(whole)), int(columns.count(whole))),
                )
            )
        return found

    @staticmethod
    def _constant(cost: Floats, blocks: tuple[int, ...]) -> TensorPiece:
        """What goes with no group."""
        return TensorPiece(groups=frozenset(), blocks=blocks, dims=(), unit=cost)

    def layer(self, spec: LayerSpec, forms: tuple[Ranks, ...]) -> JointLayer:
        """A layer that pairs may replace."""
        dense = self._dense(spec)
        rows, columns = self._weight(spec)[0], self._columns_of_pair(spec)
        whole = [len(group.kept) - 1 for group in self._widths]
        counted = sum(
            (piece.cost(whole) for piece in self.as_it_stands._dense(spec)),
            np.zeros(len(self.costing.metrics)),
        )
        has_bias = pair_has_bias(spec, plan_has_bias=self._source.has_bias)
        groups = rows.groups | columns.groups
        return JointLayer(
            spec=spec,
            groups=groups.union(*(piece.groups for piece in dense)),
            blocks=self._inside(spec.name),
            rows=rows,
            columns=columns,
            dense=tuple(dense),
            fixed=self.costing.whole_layer(spec) - counted,
            forms=forms,
            bias=self.costing.number_cost(spec.itemsize) * has_bias,
            steps=self.costing.steps,
            inside=None if spec.groups == 1 else self._weight(spec)[1],
        )

    def pieces(self, layers: Collection[str]) -> list[Piece]:
        """Everything that is no part of these layers and known to go with a group; and the fixed pairs."""
        specs = self._source.structure.layers
        layers = {*layers, *self._fixed.settings}
        inside = {tensor for name in layers for tensor in matrix_names(specs[name])}
        pieces: list[Piece] = [
            piece
            for name, tensor in self._channels.tensors.items()
            if name not in inside and not self._is_gone(name)
            for piece in self._tensor(tensor).split()
        ]
        for product in self._channels.products:
            if self._is_gone(product.module):
                continue
            kept = tuple(
                (index, self._widths[index].kept, self._widths[index].units)
                for group in product.groups
                if (index := self._dims.index_of(group)) is not None
            )
            pieces.append(
                ProductPiece(
                    groups=frozenset(index for index, _, _ in kept),
                    blocks=self._inside(product.module),
                    macs=product.macs,
                    kept=kept,
                    unit=np.array([float(metric == "macs") for metric in self.costing.metrics]),
                    fixed=tuple(
                        (len(self._fixed.groups[group]), self._channels.groups[group].units)
                        for group in product.groups
                        if group in self._fixed.groups
                    ),
                )
            )
        for name in dict.fromkeys((*self._consumed, *self._slimmed)):
            if name not in layers and not self._is_gone(name):
                pieces.extend(self._new_bias(self._source.structure.layers[name]))
        for name, spec in self._source.structure.layers.items():
            if name not in layers and not self._is_gone(name):
                pieces.extend(piece for time in self._dense_times(spec) for piece in time.split())
        for name, setting in self._fixed.settings.items():
            pieces.extend(piece for part in self._pair(specs[name], setting) for piece in part.split())
        pieces.extend(self._unit_times())
        return [piece for piece in pieces if piece.unit.any()]

    def blocks(self, full: Sequence[tuple[tuple[int, ...], Floats]]) -> tuple[Block, ...]:
        """The blocks, given blocks and cost of every piece and layer at full width."""
        names = [offered.block for offered in self._offered]
        return tuple(
            Block(
                name=name,
                damage=max(float(offered.damage), 0.0),
                cost=self._block_cost(name),
                rest=self._block_cost(name)
                - sum(
                    (cost for blocks, cost in full if index in blocks), np.zeros(len(self.costing.metrics))
                ),
                outer=frozenset(
                    outer for outer, other in enumerate(names) if other != name and is_inside(name, (other,))
                ),
            )
            for index, (name, offered) in enumerate(zip(names, self._offered, strict=True))
        )

    def _block_cost(self, name: str) -> Floats:
        return self.costing.whole_block(self._source, name)

    def homes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Of each group, the blocks that hold each of its tensors."""
        found: dict[str, dict[tuple[int, ...], None]] = {group.name: {} for group in self._widths}
        for tensor in self._channels.tensors.values():
            touched = {axis.group for axis in tensor.axes} & found.keys()
            if touched and not self._is_gone(tensor.name):
                for group in touched:
                    found[group][self._inside(tensor.name)] = None
        return tuple(tuple(homes) for homes in found.values())

    def _consumers(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Layer -> the offered groups that it reads, each with the index of its whole width."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for index, group in enumerate(self._widths):
            for member in group.needs:
                for name in self._channels.groups[member].consumers:
                    found[name].append((index, len(group.kept) - 1))
        return {name: tuple(groups) for name, groups in found.items()}

    def _tensor(self, tensor: TensorSpec) -> TensorPiece:
        stored = int(tensor.is_parameter)
        dims = self._dims.all_of(tensor.shape, tensor.axes)
        untouched = prod(dim.fixed for dim in dims if not dim.parts)
        return TensorPiece(
            groups=frozenset[int]().union(*(dim.groups for dim in dims)),
            blocks=self._inside(tensor.name),
            dims=tuple(dim for dim in dims if dim.parts),
            unit=untouched
            * self.costing.as_array(
                Cost(macs=tensor.positions, params=stored, bytes=stored * tensor.itemsize)
            ),
        )

    def _weight(self, spec: LayerSpec) -> tuple[Dim, ...]:
        tensor = matrix_tensor(spec, self._channels)
        return self._dims.all_of(spec.weight_shape, () if tensor is None else tensor.axes)

    def _columns_of_pair(self, spec: LayerSpec) -> Dim:
        """Inputs that the first factor of a pair reads: of all groups of a grouped convolution."""
        if spec.groups == 1:
            return self._weight(spec)[1]
        tensor = self._channels.tensors.get(f"{spec.name}.weight")
        n_groups, n_inside = spec.groups, spec.weight_shape[1]
        axes = []
        for axis in () if tensor is None else tensor.axes:
            if axis.dim == 1:
                axes.append(replace(axis, dim=0, units=axis.units * n_groups))
            elif axis.dim == 0:
                # What takes outputs out of every kernel group alike leaves none without outputs.
                by_kernel_group = np.array(axis.units).reshape(n_groups, -1)
                if (by_kernel_group == by_kernel_group[:, :1]).all():
                    units = by_kernel_group[:, 0].repeat(n_inside).tolist()
                    axes.append(replace(axis, units=tuple(units), queries=()))
        (columns,) = self._dims.all_of((n_groups * n_inside,), axes)
        return columns

    def _new_bias(self, spec: LayerSpec) -> list[TensorPiece]:
        """The bias that a consumer without one gets when it is fitted anew."""
        # Where a width is fixed, it is there whatever else is slimmed.
        is_slimmed = spec.name in self._slimmed
        once = () if is_slimmed else self._consumed.get(spec.name, ())
        if not (once or is_slimmed) or not consumer_gains_bias(
            spec, self._channels, plan_has_bias=self._source.has_bias
        ):
            return []
        rows = self._weight(spec)[1 if spec.is_transposed else 0]
        piece = TensorPiece(
            groups=rows.groups.union(group for group, _ in once),
            blocks=self._inside(spec.name),
            dims=(rows,),
            unit=self.costing.number_cost(spec.itemsize),
            once=once,
        )
        return [piece]

    def _dense_times(self, spec: LayerSpec) -> list[TensorPiece]:
        """What of the time of a layer in one piece goes with its shape."""
        parts = self.costing.dense_parts(spec.name)
        if parts is None:
            return []
        one = self._dims.all_of((1,), ())
        rows, columns = (*self._weight(spec), *one)[:2]
        if spec.is_transposed:
            rows, columns = columns, rows
        # As ``timed_sizes`` counts them.
        alone = self._stair(rows, 0), columns if spec.groups > 1 else self._stair(columns, 1)
        # The bound splits what goes with more groups by the groups of each dimension: steps do not add up.
        is_tabled = len(rows.groups | columns.groups) <= MAX_TABLE_GROUPS
        both = [
            stair if is_tabled or len(dim.groups) <= 1 else dim
            for dim, stair in zip((rows, columns), alone, strict=True)
        ]
        return [
            TensorPiece(
                groups=frozenset[int]().union(*(dim.groups for dim in dims)),
                blocks=self._inside(spec.name),
                dims=dims,
                unit=unit,
            )
            for dims, unit in (
                (alone[:1], parts.row),
                (alone[1:], parts.column),
                (tuple(both), parts.product),
            )
            if unit.any()
        ]

    def _stair(self, dim: Dim, axis: int) -> Dim:
        """Rows (axis 0) or columns as times count them, up to the next step, where it can be told."""
        is_tabled = len(dim.groups) <= MAX_TABLE_GROUPS
        return replace(dim, step=self.costing.steps[axis]) if is_tabled else dim

    def _unit_times(self) -> list[TensorPiece]:
        """What goes with the units of each group and is no layer."""
        homes = self.homes()
        pieces = []
        for name, kept in self._fixed.groups.items():
            # What it takes whole stands in the cost of the model.
            change = self.costing.slimmed_group(self._channels.groups[name], len(kept))
            pieces.append(self._constant(change, ()))
        for index, group in enumerate(self._widths):
            within = [set(home) for home in homes[index]]
            # It goes with a block that holds all of the group.
            blocks = tuple(sorted(set.intersection(*within))) if within else ()
            for name in group.needs:
                axis = AxisUnits(group=name, dim=0, role="output", units=tuple(range(group.units)))
                units = TensorPiece(
                    groups=frozenset((index,)),
                    blocks=blocks,
                    dims=self._dims.all_of((group.units,), (axis,)),
                    unit=self.costing.unit_cost(name),
                )
                extra = self.costing.whole_extra(self._channels.groups[name])
                # Saved at once when the group is slimmed.
                saved = replace(units, dims=(), unit=-extra, once=((index, len(group.kept) - 1),))
                pieces += [units, saved]
        return pieces

    def _inside(self, name: str) -> tuple[int, ...]:
        around = accumulate(name.split("."), "{}.{}".format)
        return tuple(sorted(self._place_of[block] for block in around if block in self._place_of))
