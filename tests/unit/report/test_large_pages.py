# SPDX-License-Identifier: Apache-2.0
"""Pages of many layers: their sizes, and how long they take to write."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

import slimrank as sr
from slimrank.cost import forms_of, layer_cost, max_rank, pair_costs
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import (
    AxisUnits,
    BlockDamage,
    BlockSpec,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    GroupSpec,
    LayerResult,
    LayerSpec,
    Role,
    Setting,
    Summary,
    TensorSpec,
)
from slimrank.report import page_data, render_page, result_data, study_data
from specs import conv2d

# As long as those of transformers.
_NAME = "vision_model.encoder.stages.{}.layers.{}.intermediate.dense_projection"
_UNIT = "nats per sample"


@dataclass(frozen=True, kw_only=True)
class Large:
    """A study of many convolutions in a row, each with its curves, groups between them, and blocks."""

    layers: tuple[LayerSpec, ...]
    before: Cost
    channels: ChannelMap
    curves: tuple[Curve, ...]
    group_curves: tuple[GroupCurve, ...]
    blocks: tuple[BlockDamage, ...]


def _curves(spec: LayerSpec, rng: np.random.Generator) -> list[Curve]:
    curves = []
    for method in ("weight_svd", "spatial_svd"):
        for form in forms_of(spec, method):  # type: ignore[arg-type]
            ranks = np.arange(1, max_rank(spec, form) + 1, dtype=np.int64)
            macs, params = pair_costs(spec, form, ranks, None, has_bias=True)
            damage = np.sort(rng.uniform(0.001, 5, len(ranks)))[::-1].copy()
            curves.append(
                Curve(
                    layer=spec.name,
                    method=method,  # type: ignore[arg-type]
                    form=form,
                    ranks=ranks,
                    macs=macs,
                    params=params,
                    bytes=4 * params,
                    error=damage,
                    damage=damage,
                    # A study measures each layer in two forms at most.
                    anchors={} if curves else {4: float(rng.uniform()), 20: float(rng.uniform())},
                )
            )
    return curves


def large_study(count: int) -> Large:
    """So many layers."""
    # Numbers as different as measured ones, which packing makes less small than equal ones.
    rng = np.random.default_rng(0)
    layers = tuple(conv2d(_NAME.format(i // 10, i % 10), 64, 64, size=14) for i in range(count))
    groups, tensors, group_curves = {}, {}, []
    for maker, reader in pairwise(layers):
        groups[maker.name] = GroupSpec(
            name=maker.name, units=64, unit_width=1, producers=(maker.name,), consumers=(reader.name,)
        )
        kept = np.arange(16, 64, dtype=np.int64)
        damage = np.sort(rng.uniform(0.001, 5, len(kept)))[::-1].copy()
        group_curves.append(
            GroupCurve(
                group=maker.name,
                order=tuple(range(64)),
                kept=kept,
                error=damage,
                damage=damage,
                anchors={count: float(rng.uniform()) for count in (45, 22, 16)},
            )
        )
    for index, spec in enumerate(layers):
        roles: list[tuple[str, int, Role]] = []
        if index + 1 < count:
            roles.append((spec.name, 0, "output"))
        if index:
            roles.append((layers[index - 1].name, 1, "input"))
        axes = tuple(AxisUnits(group=g, dim=d, role=r, units=tuple(range(64))) for g, d, r in roles)
        tensors[f"{spec.name}.weight"] = TensorSpec(
            name=f"{spec.name}.weight", shape=(64, 64, 3, 3), itemsize=4, is_parameter=True, positions=196,
            axes=axes,
        )  # fmt: skip
    blocks = {
        (name := f"vision_model.encoder.stages.{index}"): BlockSpec(name=name, macs=1, params=1, bytes=4)
        for index in range(count // 10)
    }
    return Large(
        layers=layers,
        before=_total(layers),
        channels=ChannelMap(groups=groups, tensors=tensors, blocks=blocks),
        curves=tuple(curve for spec in layers for curve in _curves(spec, rng)),
        group_curves=tuple(group_curves),
        blocks=tuple(BlockDamage(block=name, damage=0.25) for name in blocks),
    )


def _total(layers: Sequence[LayerSpec]) -> Cost:
    costs = [layer_cost(spec) for spec in layers]
    return Cost(**{key: sum(getattr(cost, key) for cost in costs) for key in ("macs", "params", "bytes")})


def _study_page(large: Large) -> str:
    return render_page(
        study_data(
            "Study",
            large.layers,
            large.before,
            (),
            unit=_UNIT,
            channels=large.channels,
            curves=large.curves,
            group_curves=large.group_curves,
            blocks=large.blocks,
        )
    )


def _result_page(large: Large) -> str:
    setting = Setting(method="spatial_svd", form="v_h", rank=24)
    # Half of the layers lose channels as well.
    kept = {spec.name: tuple(range(40)) for spec in large.layers[:-1:2]}
    step = Step(
        structure=structure_of(large.layers, large.channels),
        layers={spec.name: (setting,) for spec in large.layers},
        groups=kept,
    )
    plan = Plan(steps=(step,), before=large.before, has_bias=True, damage=3.0, multiple_of=8)
    free = Setting(method="spatial_svd", form="v_h", rank=23)
    unrounded = plan.replace(large.layers[0].name, free)
    results = tuple(
        LayerResult(
            name=spec.name,
            before=layer_cost(spec),
            after=layer_cost(spec),
            setting=setting,
            slimmed="64 -> 40 outputs",
            damage=0.01234,
            fit="sequential",
        )
        for spec in large.layers
    )
    summary = Summary(
        title="Net, compressed",
        before=large.before,
        after=large.before,
        start=large.before,
        layers=results,
        divergence=0.1,
        damage=3.0,
        unit=_UNIT,
        damage_unit=_UNIT,
        notes=(),
        seconds={},
        measurements=(),
    )
    data = result_data(
        summary, plan, curves=large.curves, group_curves=large.group_curves, unrounded=unrounded
    )
    return render_page(data)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "most"), [(50, 150_000), (1000, 1_500_000)])
def test_pages_are_small_and_quick_to_write(count: int, most: int) -> None:
    large = large_study(count)
    for page_of in (_study_page, _result_page):
        # Of the processor: other work on the machine is not the page's.
        start = time.process_time()
        page = page_of(large)
        seconds = time.process_time() - start
        assert page.count("data-layer=") >= count
        assert len(page.encode()) <= most, f"{page_of.__name__}: {len(page.encode())} bytes"
        assert seconds < 5.0


def test_packed_data_come_back_and_altered_ones_are_refused() -> None:
    page = _result_page(large_study(40))
    assert 'type="application/gzip"' in page
    data = page_data(page)
    assert len(data["layers"]) == 40  # type: ignore[arg-type]
    assert render_page(data) == page
    start = page.index('type="application/gzip" id="data">') + len('type="application/gzip" id="data">')
    middle = start + 2000
    for damaged in ("*", "A" if page[middle] != "A" else "B", ""):
        with pytest.raises(sr.FileError, match="it is no page that slimrank wrote, or was changed"):
            page_data(page[:middle] + damaged + page[middle + 1 :])
    with pytest.raises(sr.FileError, match="it is no page that slimrank wrote, or was changed"):
        page_data(page[:middle])
