# SPDX-License-Identifier: Apache-2.0
"""Small networks of made-up layers, groups and blocks, whose choices can all be tried."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from slimrank.cost import (
    layer_cost,
    max_rank,
    pair_costs,
    pair_rows_and_columns,
    rows_and_columns,
    timed_sizes,
)
from slimrank.plan import structure_of
from slimrank.records import (
    AxisUnits,
    BlockDamage,
    BlockSpec,
    ChannelMap,
    Cost,
    Curve,
    DenseTime,
    GroupCurve,
    GroupSpec,
    LayerSpec,
    LayerTimes,
    Metric,
    NetworkTimes,
    PairTime,
    ProductSpec,
    Role,
    Steps,
    TensorSpec,
    step_edge,
)
from specs import Source, conv2d

METHODS = ("weight_svd", "spatial_svd", "channel_pruning")
BUDGETS: tuple[tuple[Metric, ...], ...] = (("macs",), ("params",), ("macs", "params"))


def stored(tensor: TensorSpec) -> Cost:
    count = prod(tensor.shape)
    return Cost(macs=0, params=count, bytes=4 * count)


def with_costs(net: Source) -> Source:
    """The same network, with curves that hold the costs of its plans, as those of a study do."""

    def counted(curve: Curve) -> Curve:
        spec = net.structure.layers[curve.layer]
        macs, params = pair_costs(
            spec, curve.form, curve.ranks, curve.ranks_in, has_bias=net.has_bias or spec.has_bias
        )
        return replace(curve, macs=macs, params=params, bytes=params * spec.itemsize)

    return replace(net, curves=tuple(counted(curve) for curve in net.curves))


class Builder:
    """A network as layers and channel families: which family each index of an input or output belongs to."""

    def __init__(self, seed: int, few: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.few = few
        self.specs: list[LayerSpec] = []
        self.tensors: dict[str, TensorSpec] = {}
        self.made: dict[str, list[str]] = {}
        self.read: dict[str, list[str]] = {}
        self.units: dict[str, int] = {}
        self.products: list[ProductSpec] = []

    def layer(
        self, name: str, into: Sequence[tuple[str, int]], out: Sequence[tuple[str, int]], size: int
    ) -> None:
        """A convolution; ``into`` and ``out`` are runs of channels: (family or "", count)."""
        c_in, c_out = sum(count for _, count in into), sum(count for _, count in out)
        has_bias = bool(self.rng.integers(2))
        spec = conv2d(name, c_out, c_in, size=size, has_bias=has_bias, methods=METHODS)
        self.specs.append(spec)
        columns, rows = self.axes(into, 1, "input"), self.axes(out, 0, "output")
        self.tensor(f"{name}.weight", spec.weight_shape, (*rows, *columns), size * size)
        if spec.has_bias:
            self.tensor(f"{name}.bias", (c_out,), rows)
        for family in {family for family, _ in out if family}:
            self.made.setdefault(family, []).append(name)
        for family in {family for family, _ in into if family}:
            self.read.setdefault(family, []).append(name)

    def axes(self, runs: Sequence[tuple[str, int]], dim: int, role: Role) -> tuple[AxisUnits, ...]:
        found = []
        for family in dict.fromkeys(family for family, _ in runs if family):
            units: list[int] = []
            for other, count in runs:
                units += (
                    [at % self.units.setdefault(family, count) for at in range(count)]
                    if other == family
                    else ([-1] * count)
                )
            found.append(AxisUnits(group=family, dim=dim, role=role, units=tuple(units)))
        return tuple(found)

    def tensor(
        self, name: str, shape: tuple[int, ...], axes: tuple[AxisUnits, ...], positions: int = 0
    ) -> None:
        if axes:
            self.tensors[name] = TensorSpec(
                name=name, shape=shape, itemsize=4, is_parameter=True, positions=positions, axes=axes
            )

    def source(self, blocks: Sequence[str] = (), names: Mapping[str, str] | None = None) -> Source:
        groups = {
            family: GroupSpec(
                name=family,
                units=units,
                unit_width=1,
                producers=tuple(self.made.get(family, ())),
                consumers=tuple(self.read.get(family, ())),
            )
            for family, units in self.units.items()
        }
        channels = ChannelMap(
            groups=groups,
            tensors=self.tensors,
            products=tuple(self.products),
            blocks={name: self.block(name) for name in blocks},
        )
        before = sum((layer_cost(spec) for spec in self.specs), Cost(macs=999, params=9, bytes=36))
        before += Cost(macs=sum(one.macs for one in self.products), params=0, bytes=0)
        for tensor in self.tensors.values():
            if "norm" in tensor.name:
                before += stored(tensor)
        source = Source(
            structure=structure_of(self.specs, channels),
            before=before,
            curves=tuple(curve for spec in self.specs for curve in self.curves(spec)),
            group_curves=tuple(self.group_curve(family, units) for family, units in self.units.items()),
            block_damages=tuple(
                BlockDamage(block=name, damage=float(self.rng.exponential(2))) for name in blocks
            ),
            has_bias=bool(self.rng.integers(2)),
            methods=METHODS,
        )
        return with_costs(source)

    def block(self, name: str) -> BlockSpec:
        inside = [layer_cost(spec) for spec in self.specs if spec.name.startswith(f"{name}.")]
        inside += [stored(one) for one in self.tensors.values() if one.name == f"{name}.norm"]
        cost = sum(inside, Cost(macs=0, params=0, bytes=0))
        return BlockSpec(name=name, macs=cost.macs, params=cost.params, bytes=cost.bytes)

    def curves(self, spec: LayerSpec) -> Iterator[Curve]:
        scale = float(np.exp(self.rng.normal()))
        for method, form in (("weight_svd", "kxk_1x1"), ("spatial_svd", "v_h")):
            full = max_rank(spec, form)  # type: ignore[arg-type]
            ranks = np.sort(self.rng.choice(np.arange(1, full), size=min(self.few, full - 1), replace=False))
            damage = scale * (1 - ranks / full) ** 2 * self.rng.uniform(0.5, 1.5)
            yield Curve(
                layer=spec.name,
                method=method,  # type: ignore[arg-type]
                form=form,  # type: ignore[arg-type]
                ranks=ranks,
                macs=ranks,
                params=ranks,
                bytes=ranks,
                error=damage,
                damage=damage,
            )

    def group_curve(self, family: str, units: int) -> GroupCurve:
        kept = np.sort(self.rng.choice(np.arange(1, units), size=min(self.few, units - 1), replace=False))
        damage = float(np.exp(self.rng.normal())) * (1 - kept / units) ** 2
        order = tuple(int(unit) for unit in self.rng.permutation(units))
        return GroupCurve(group=family, order=order, kept=kept, error=damage, damage=damage)


def chain(seed: int) -> Source:
    net = Builder(seed)
    net.layer("a", [("", 3)], [("g", 8)], 8)
    net.tensor("norm.a", (8,), net.axes([("g", 8)], 0, "output"))
    net.layer("b", [("g", 8)], [("h", 12)], 8)
    net.layer("c", [("h", 12)], [("", 10)], 4)
    return net.source()


def residual(seed: int) -> Source:
    """A stream of channels that the third layer adds to; a block that may go."""
    net = Builder(seed)
    net.layer("a", [("", 3)], [("g", 8)], 8)
    net.tensor("block.norm", (8, 50), net.axes([("g", 8)], 0, "output"))
    net.layer("block.b", [("g", 8)], [("h", 12)], 8)
    net.layer("block.c", [("h", 12)], [("g", 8)], 8)
    net.layer("d", [("g", 8)], [("", 10)], 4)
    return net.source(blocks=("block",))


def concatenation(seed: int) -> Source:
    """Two families side by side, and all three at one layer; a product of activations."""
    net = Builder(seed, few=2)
    net.layer("a", [("", 3)], [("g", 6)], 8)
    net.layer("b", [("g", 6)], [("h", 8)], 8)
    net.layer("c", [("g", 6), ("h", 8)], [("k", 8)], 8)
    net.products.append(ProductSpec(module="", macs=5001, groups=("g", "k")))
    net.layer("d", [("k", 8), ("", 2)], [("", 6)], 8)
    return net.source()


def heads(seed: int) -> Source:
    """Every index belongs to a unit of two groups: it goes as soon as one of them does."""
    net = Builder(seed)
    net.layer("a", [("", 3)], [("", 12)], 8)
    net.layer("b", [("", 12)], [("", 10)], 8)
    many = AxisUnits(group="head", dim=0, role="output", units=tuple(at // 4 for at in range(12)))
    wide = AxisUnits(group="width", dim=0, role="output", units=tuple(at % 4 for at in range(12)))
    for name in ("a.weight", "b.weight", "a.bias"):
        into = name == "b.weight"
        if name == "a.bias" and not net.specs[0].has_bias:
            continue
        shape = {"a.weight": (12, 3, 3, 3), "b.weight": (10, 12, 3, 3), "a.bias": (12,)}[name]
        axes = tuple(
            AxisUnits(group=one.group, dim=int(into), role="input" if into else "output", units=one.units)
            for one in (many, wide)
        )
        net.tensor(name, shape, axes, 64 if "weight" in name else 0)
    net.units |= {"head": 3, "width": 4}
    net.made |= {"head": ["a"], "width": ["a"]}
    net.read |= {"head": ["b"], "width": ["b"]}
    return net.source()


def heads_behind_a_group(seed: int) -> Source:
    """As ``heads``, but what makes the heads reads channels of a third group."""
    net = Builder(seed)
    net.layer("enter", [("", 3)], [("x", 6)], 8)
    net.layer("a", [("x", 6)], [("", 12)], 8)
    net.layer("b", [("", 12)], [("", 10)], 8)
    both = (("head", tuple(at // 4 for at in range(12))), ("width", tuple(at % 4 for at in range(12))))
    rows = tuple(AxisUnits(group=name, dim=0, role="output", units=units) for name, units in both)
    columns = tuple(AxisUnits(group=name, dim=1, role="input", units=units) for name, units in both)
    known = net.tensors["a.weight"]
    net.tensors["a.weight"] = replace(known, axes=(*rows, *known.axes))
    if net.specs[1].has_bias:
        net.tensor("a.bias", (12,), rows)
    net.tensor("b.weight", (10, 12, 3, 3), columns, 64)
    net.units |= {"head": 3, "width": 4}
    net.made |= {"head": ["a"], "width": ["a"]}
    net.read |= {"head": ["b"], "width": ["b"]}
    return net.source()


def grouped(seed: int) -> Source:
    """A convolution in three groups: whole ones may go, and inputs at the same place of all of them."""
    net = Builder(seed)
    net.layer("a", [("", 3)], [("", 12)], 8)
    net.layer("b", [("", 4)], [("", 12)], 8)
    net.layer("c", [("", 12)], [("", 10)], 8)
    net.specs[1] = replace(net.specs[1], groups=3)
    whole, inside = tuple(at // 4 for at in range(12)), tuple(at % 4 for at in range(12))
    rows = {"a": (("whole", whole), ("inside", inside)), "b": (("whole", whole),)}
    columns = {"b": (("inside", inside[:4]),), "c": (("whole", whole),)}
    for spec in net.specs:
        rows_of, columns_of = (
            tuple(AxisUnits(group=name, dim=dim, role=role, units=units) for name, units in axes)
            for axes, dim, role in (
                (rows.get(spec.name, ()), 0, "output"),
                (columns.get(spec.name, ()), 1, "input"),
            )
        )
        net.tensor(f"{spec.name}.weight", spec.weight_shape, (*rows_of, *columns_of), 64)
        if spec.has_bias:
            net.tensor(f"{spec.name}.bias", spec.weight_shape[:1], rows_of)
    net.units |= {"whole": 3, "inside": 4}
    net.made |= {"whole": ["a", "b"], "inside": ["a"]}
    net.read |= {"whole": ["c"], "inside": ["b"]}
    return net.source()


def nested(seed: int) -> Source:
    """A block inside a block, each with a group of its own, on a stream that four layers read."""
    net = Builder(seed, few=1)
    net.layer("a", [("", 3)], [("g", 8)], 8)
    net.layer("block.b", [("g", 8)], [("h", 12)], 8)
    net.layer("block.sub.c", [("h", 12)], [("i", 9)], 8)
    net.layer("block.sub.d", [("i", 9)], [("h", 12)], 8)
    net.layer("block.e", [("g", 8), ("h", 12)], [("g", 8)], 8)
    net.layer("f", [("g", 8)], [("", 10)], 4)
    return net.source(blocks=("block", "block.sub"))


def two_blocks(seed: int) -> Source:
    """A group whose tensors stand in two blocks."""
    net = Builder(seed, few=2)
    net.layer("one.a", [("", 8)], [("g", 8)], 8)
    net.layer("two.b", [("g", 8)], [("h", 8)], 8)
    net.layer("two.c", [("h", 8)], [("", 8)], 8)
    net.layer("d", [("", 8)], [("", 10)], 4)
    return net.source(blocks=("one", "two"))


def three_factors(seed: int) -> Source:
    """The chain, whose layers may become three as well: no cost is in proportion to their ranks."""
    net = Builder(seed, few=2)
    net.layer("a", [("", 6)], [("g", 8)], 8)
    net.layer("b", [("g", 8)], [("h", 12)], 8)
    net.layer("c", [("h", 12)], [("", 10)], 4)
    source = net.source()
    curves = []
    for spec in net.specs:
        c_out, c_in = spec.weight_shape[:2]
        ranks = np.sort(net.rng.choice(np.arange(1, c_out), size=3, replace=False))
        ranks_in = np.sort(net.rng.choice(np.arange(1, c_in), size=3))
        # The bounds of either rank at the other, for nine taps.
        ranks_in = np.clip(ranks_in, -(-ranks // 9), 9 * ranks)
        damage = np.exp(net.rng.normal()) * (1 - ranks / c_out) ** 2
        curves.append(
            Curve(
                layer=spec.name,
                method="tucker2",
                form="1x1_kxk_1x1",
                ranks=ranks,
                macs=ranks,
                params=ranks,
                bytes=ranks,
                error=damage,
                damage=damage,
                ranks_in=ranks_in,
            )
        )
    return with_costs(replace(source, curves=(*source.curves, *curves), methods=(*METHODS, "tucker2")))


NETS = {
    "chain": chain,
    "residual": residual,
    "concatenation": concatenation,
    "heads": heads,
    "grouped": grouped,
    "nested": nested,
    "blocks": two_blocks,
    "three factors": three_factors,
}


def invented_times(net: Source, seed: int, step: int = 1) -> NetworkTimes:
    """Times with every part that a table can have; one layer of each network is not in it.

    Those of odd seeds count what layers read up to a finer step than what they write.
    """
    steps = Steps(rows=step, columns=max(1, step // 2) if seed % 2 else step)
    rng = np.random.default_rng([seed, 7])
    layers: dict[str, LayerTimes] = {}
    specs = list(net.structure.layers.values())
    for spec in specs[:-1] if len(specs) > 3 else specs:
        rows, columns = rows_and_columns(spec)
        _, pair_columns = pair_rows_and_columns(spec)
        whole = float(rng.uniform(2e4, 2e5))
        parts = rng.dirichlet([1.0, 1.0, 1.0, 5.0]) * whole
        pairs = {}
        for form in ("kxk_1x1", "v_h"):
            if rng.uniform() < 0.85:
                # At the full rank a pair takes 0.7 to 2 times as long as the layer.
                total = rng.dirichlet([0.5, 0.5, 2.0, 2.0, 0.5, 0.5]) * whole * rng.uniform(0.7, 2.0)
                rank = max_rank(spec, form)  # type: ignore[arg-type]
                pairs[form] = PairTime(
                    fixed=total[0],
                    per_rank=total[1] / rank,
                    per_row=total[2] / rank / rows,
                    per_column=total[3] / rank / pair_columns,
                    any_row=total[4] / rows,
                    any_column=total[5] / pair_columns,
                )
        layers[spec.name] = LayerTimes(
            dense=DenseTime(
                fixed=parts[0],
                per_row=parts[1] / rows,
                per_column=parts[2] / columns,
                per_product=parts[3] / rows / columns,
            ),
            pairs=pairs,  # type: ignore[arg-type]
        )
    groups = {name: float(rng.uniform(0, 2e3)) for name in net.structure.channels.groups}
    ragged = {name: float(rng.uniform(0, 2e4)) for name in list(groups)[:1]}
    blocks = {name: float(rng.uniform(0, 2e4)) for name in net.structure.channels.blocks}
    whole = sum(
        float(layer.dense.time(*timed_sizes(net.structure.layers[name], steps)))
        for name, layer in layers.items()
    )
    # Units are as wide as one output.
    units = {name: group.units for name, group in net.structure.channels.groups.items()}
    whole += sum(float(step_edge(units[name], step)) * unit for name, unit in groups.items())
    whole += sum(blocks.values()) + sum(ragged.values())
    # The time of an outer block holds what goes with the inner one: it is counted once.
    outer = [name for name in blocks if any(other.startswith(f"{name}.") for other in blocks)]
    for name in outer:
        inner = sum(time for other, time in blocks.items() if other.startswith(f"{name}."))
        blocks[name] += inner
    fixed = float(rng.uniform(0.02, 0.1)) * whole
    return NetworkTimes(
        layers=layers,
        groups=groups,
        blocks=blocks,
        ragged=ragged,
        fixed=fixed,
        before=fixed + whole,
        reference=(fixed + whole) * float(rng.choice([1.0, 1.25])),
        step=step,
        column_step=steps.columns,
    )
