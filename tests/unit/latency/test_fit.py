# SPDX-License-Identifier: Apache-2.0
"""Formulas from times that an invented machine would take."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import seams
import slimrank as sr
from slimrank.cost import factor_costs, layer_cost, slimmed_spec
from slimrank.latency import draw_variants
from slimrank.plan import Step, Structure, predicted_time
from slimrank.records import Method, NetworkTimes, Steps

BATCH, STEP = 4, 8
# ns: for each multiply-accumulate, of each operation, of each unit of a group, of all else.
MAC, CALL, UNIT, FIXED = 0.05, 900.0, 40.0, 20_000.0


@pytest.fixture(scope="module")
def study() -> sr.Study:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(16, 64, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 36, 10)).eval()
    return sr.study(model, [torch.randn(4, 16, 6, 6)], data_free=True, effort="fast", progress=False)


def parts_on_the_machine(variant: Step) -> seams.Parts:
    structure = variant.structure
    factors = {}
    for name, whole in structure.layers.items():
        spec = slimmed_spec(whole, structure.channels, variant.groups)
        setting = variant.settings.get(name)
        if setting is None:
            factors[name] = (CALL + MAC * BATCH * layer_cost(spec).macs,)
        else:
            column, row = factor_costs(spec, setting.form)
            rows, columns = spec.weight_shape[0], spec.weight_shape[1] * spec.groups
            factors[name] = (
                CALL + MAC * BATCH * column.macs * setting.rank * columns,
                CALL + MAC * BATCH * row.macs * setting.rank * rows,
            )
    others = {
        seams.Place(block="", groups=(name,)): UNIT * len(variant.groups.get(name, range(group.units)))
        for name, group in structure.channels.groups.items()
        if group.reason is None
    }
    return seams.Parts(factors=factors, others=others)


def whole(variant: Step) -> float:
    return FIXED + parts_on_the_machine(variant).total


def formulas_of(
    structure: Structure,
    methods: Sequence[Method],
    measured: Sequence[seams.Measured],
    *,
    float_ratio: float = 1.0,
) -> NetworkTimes:
    """The formulas that fit measurements on the machine; ``float_ratio`` as in ``fitted``."""
    untouched = Step(structure=structure, layers={})
    return seams.fit_times(
        structure,
        methods,
        measured,
        original=parts_on_the_machine(untouched),
        before=whole(untouched),
        reference=float_ratio * whole(untouched),
        batch=BATCH,
        steps=Steps(STEP, STEP),
    ).times


def fitted(structure: Structure, *, speed: float = 1.0, float_ratio: float = 1.0) -> NetworkTimes:
    """The formulas of eight variants; profiles were taken on a machine that was faster or slower by then.

    Args:
        structure: of the network.
        speed: by how much the machine was faster at most.
        float_ratio: time of the original in float32 over that in the precision of the table.
    """
    methods: tuple[Method, ...] = ("weight_svd", "spatial_svd", "channel_pruning")
    untouched = Step(structure=structure, layers={})
    speeds = np.random.default_rng(0).uniform(1, speed, 8)
    measured = [
        seams.Measured(
            variant=variant,
            parts=parts_on_the_machine(variant).scaled(factor),
            ratio=whole(variant) / whole(untouched) / float_ratio,
            spread=0.0,
        )
        for variant, factor in zip(
            draw_variants(structure, methods, count=8, step=STEP, seed=0), speeds, strict=True
        )
    ]
    return formulas_of(structure, methods, measured, float_ratio=float_ratio)


@pytest.mark.parametrize(("speed", "tolerance"), [(1.0, 0.02), (1.3, 0.04)])
def test_fresh_variants_are_predicted(study: sr.Study, speed: float, tolerance: float) -> None:
    times = fitted(study.structure, speed=speed)
    fresh = draw_variants(study.structure, study.methods, count=20, step=STEP, seed=9)
    ratios = [predicted_time(times, variant) / whole(variant) for variant in fresh]
    assert max(abs(ratio - 1) for ratio in ratios) < tolerance
    untouched = Step(structure=study.structure, layers={})
    assert predicted_time(times, untouched) == pytest.approx(times.before, rel=1e-6)
    assert times.before == pytest.approx(times.reference, rel=tolerance)
    assert times.step == STEP


def test_profiles_that_wander_leave_the_slope_of_predictions_alone(study: sr.Study) -> None:
    """Each profile by a factor of its own: times of strong plans must not be drawn towards the original's."""
    structure, untouched = study.structure, Step(structure=study.structure, layers={})
    fresh = draw_variants(structure, study.methods, count=20, step=STEP, seed=99)
    slopes = []
    for seed in range(10):
        speeds = np.exp(np.random.default_rng(seed).uniform(-0.3, 0.3, 9))
        times = seams.fit_times(
            structure,
            study.methods,
            [
                seams.Measured(
                    variant=variant,
                    parts=parts_on_the_machine(variant).scaled(speed),
                    ratio=whole(variant) / whole(untouched),
                    spread=0.0,
                )
                for variant, speed in zip(
                    draw_variants(structure, study.methods, count=8, step=STEP, seed=seed),
                    speeds,
                    strict=False,
                )
            ],
            original=parts_on_the_machine(untouched).scaled(speeds[-1]),
            before=whole(untouched),
            reference=whole(untouched),
            batch=BATCH,
            steps=Steps(STEP, STEP),
        ).times
        predicted = [predicted_time(times, variant) for variant in fresh]
        slopes.append(np.polyfit(np.log([whole(variant) for variant in fresh]), np.log(predicted), 1)[0])
    assert np.mean(slopes) == pytest.approx(1, abs=0.03)


def test_what_is_slow_at_the_whole_width_alone_is_told_apart(study: sr.Study) -> None:
    """As int8 pooling, which takes many times as long at 48 channels as at 32."""
    structure, untouched = study.structure, Step(structure=study.structure, layers={})
    slow, extra = next(name for name, group in structure.channels.groups.items() if group.reason is None), 5e5

    def parts_of(variant: Step) -> seams.Parts:
        parts = parts_on_the_machine(variant)
        place = seams.Place(block="", groups=(slow,))
        more = 0.0 if slow in variant.groups else extra
        return replace(parts, others={**parts.others, place: parts.others[place] + more})

    variants = draw_variants(structure, study.methods, count=8, step=STEP, seed=0)
    whole_ns = FIXED + parts_of(untouched).total
    times = seams.fit_times(
        structure,
        study.methods,
        [
            seams.Measured(
                variant=variant,
                parts=parts_of(variant),
                ratio=(FIXED + parts_of(variant).total) / whole_ns,
                spread=0.0,
            )
            for variant in variants
        ],
        original=parts_of(untouched),
        before=whole_ns,
        reference=whole_ns,
        batch=BATCH,
        steps=Steps(STEP, STEP),
    ).times
    assert times.ragged == {slow: pytest.approx(extra, rel=0.05)}
    for variant in draw_variants(structure, study.methods, count=20, step=STEP, seed=9):
        assert predicted_time(times, variant) == pytest.approx(FIXED + parts_of(variant).total, rel=0.03)


class Attention(nn.Module):
    """What its products cost grows with the number of heads times the numbers that each compares."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)  # (N, heads, T, 16)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


def test_what_grows_with_heads_times_their_width_is_predicted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Attention() for _ in range(3)), nn.Linear(64, 8)).eval()
    study = sr.study(model, [torch.randn(4, 6, 64)], data_free=True, effort="fast", progress=False)
    structure, untouched = study.structure, Step(structure=study.structure, layers={})
    heads = {f"{number}.qkv": (f"{number}.qkv", f"{number}.qkv#2") for number in range(3)}
    assert {name for groups in heads.values() for name in groups} <= {*structure.channels.groups}
    each = 4_000.0  # ns for each number of each head

    def parts_of(variant: Step) -> seams.Parts:
        parts = parts_on_the_machine(variant)
        more = {}
        for home, groups in heads.items():
            spec = slimmed_spec(structure.layers[home], structure.channels, variant.groups)
            more[seams.Place(block="", groups=groups)] = each * spec.n_outputs
        return replace(parts, others={**parts.others, **more})

    def time_of(variant: Step) -> float:
        return FIXED + parts_of(variant).total

    times = seams.fit_times(
        structure,
        study.methods,
        [
            seams.Measured(
                variant=variant,
                parts=parts_of(variant),
                ratio=time_of(variant) / time_of(untouched),
                spread=0.0,
            )
            for variant in draw_variants(structure, study.methods, count=8, step=1, seed=0)
        ],
        original=parts_of(untouched),
        before=time_of(untouched),
        reference=time_of(untouched),
        batch=BATCH,
        steps=Steps(),
    ).times
    fresh = draw_variants(structure, study.methods, count=20, step=1, seed=9)
    for variant in (untouched, *fresh):
        assert predicted_time(times, variant) == pytest.approx(time_of(variant), rel=0.03)


def test_fresh_variants_of_grouped_kernels_are_predicted() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(16, 64, 1), nn.ReLU()]
    for groups in (4, 2, 1):
        layers += [nn.Conv2d(64, 64, 3, padding=1, groups=groups), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(64, 8, 1)).eval()
    methods: tuple[Method, ...] = ("weight_svd", "spatial_svd")
    study = sr.study(model, [torch.randn(4, 16, 6, 6)], methods=methods, data_free=True, progress=False)
    times = fitted(study.structure)
    assert times.layers["2"].pairs
    assert times.layers["4"].pairs
    fresh = draw_variants(study.structure, study.methods, count=20, step=STEP, seed=9)
    assert any(name in variant.settings for variant in fresh for name in ("2", "4"))
    ratios = [predicted_time(times, variant) / whole(variant) for variant in fresh]
    assert max(abs(ratio - 1) for ratio in ratios) < 0.03


def test_ratios_are_to_the_original_in_float(study: sr.Study) -> None:
    times = fitted(study.structure, float_ratio=3.0)
    untouched = Step(structure=study.structure, layers={})
    assert times.reference == pytest.approx(3 * whole(untouched))
    assert times.before == pytest.approx(whole(untouched), rel=0.02)
    for variant in draw_variants(study.structure, study.methods, count=5, step=STEP, seed=9):
        assert predicted_time(times, variant) == pytest.approx(whole(variant), rel=0.02)


def test_pairs_of_narrowed_layers_read_and_write_less(study: sr.Study) -> None:
    times = fitted(study.structure)
    pairs = [pair for layer in times.layers.values() for pair in layer.pairs.values()]
    assert any(pair.any_row > 0 or pair.any_column > 0 for pair in pairs)


def test_a_form_that_is_never_faster_is_left_out(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    variants = draw_variants(study.structure, study.methods, count=8, step=STEP, seed=0)
    measured = []
    for variant in variants:
        parts = parts_on_the_machine(variant)
        # Kernels of one row are as slow as it gets here.
        slow = {
            name: tuple(50 * time for time in times)
            if variant.settings.get(name) is not None and variant.settings[name].form == "v_h"
            else times
            for name, times in parts.factors.items()
        }
        parts = replace(parts, factors=slow)
        ratio = (FIXED + parts.total) / whole(untouched)
        measured.append(seams.Measured(variant=variant, parts=parts, ratio=ratio, spread=0.0))
    times = formulas_of(study.structure, study.methods, measured)
    for name in ("2", "4", "6", "8"):
        assert "v_h" not in times.layers[name].pairs
        assert "kxk_1x1" in times.layers[name].pairs


def test_times_that_do_not_follow_the_layers_are_refused(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    measured = [
        # The machine did other work: what has less to do took longer.
        seams.Measured(
            variant=variant,
            parts=parts_on_the_machine(variant),
            ratio=100 * (whole(untouched) / whole(variant)) ** 4,
            spread=0.9,
        )
        for variant in draw_variants(study.structure, study.methods, count=8, step=STEP, seed=0)
    ]
    with pytest.raises(sr.LatencyError, match=r"do not follow what the variants change.*on a quiet machine"):
        formulas_of(study.structure, study.methods, measured)


# By how much kernels are slower in a runtime that tells whole times only, by their form ("" in one piece).
OTHER = {"": 0.8, "v_h": 1.5, "h_v": 1.4, "kxk_1x1": 1.1, "1x1_kxk": 1.2, "linear": 1.0}


def whole_in_the_other(variant: Step) -> float:
    """In a runtime with other kernels, which fuses what is no layer."""
    parts = parts_on_the_machine(variant)
    forms = {name: setting.form for name, setting in variant.settings.items()}
    return 0.5 * FIXED + sum(OTHER[forms.get(name, "")] * sum(times) for name, times in parts.factors.items())


def test_whole_times_alone_are_enough_beside_the_parts_of_another_runtime(study: sr.Study) -> None:
    untouched = Step(structure=study.structure, layers={})
    noise = np.random.default_rng(0).normal(1.0, 0.005, 20)
    measured = [
        seams.Measured(
            variant=variant,
            parts=parts_on_the_machine(variant),
            ratio=factor * whole_in_the_other(variant) / whole_in_the_other(untouched),
            spread=0.0,
        )
        for variant, factor in zip(
            draw_variants(study.structure, study.methods, count=20, step=STEP, seed=0), noise, strict=True
        )
    ]
    fit = seams.fit_whole_times(
        study.structure,
        study.methods,
        measured,
        original=parts_on_the_machine(untouched),
        before=whole_in_the_other(untouched),
        reference=whole_in_the_other(untouched),
        batch=BATCH,
        steps=Steps(STEP, STEP),
    )
    fresh = draw_variants(study.structure, study.methods, count=20, step=STEP, seed=9)
    errors = [abs(predicted_time(fit.times, step) / whole_in_the_other(step) - 1) for step in fresh]
    assert np.median(errors) < 0.015
    assert max(errors) < 0.05
    # What variants that were left out show is what fresh ones show.
    assert 0.5 < np.median(fit.errors) / np.median(errors) < 2.5
    # Unscaled, the parts of the other runtime are far off.
    unscaled = [
        whole(step) / whole(untouched) / (whole_in_the_other(step) / whole_in_the_other(untouched))
        for step in fresh
    ]
    assert np.median(np.abs(np.array(unscaled) - 1)) > 0.04
