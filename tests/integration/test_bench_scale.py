# SPDX-License-Identifier: Apache-2.0
"""What ``bench_scale`` counts, times and keeps."""

from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank as sr
from benchmarks.tables import read_table
from slimrank.records import Call, LayerSpec

# Pictures of the benchmarks; the environment of the tests need not have it.
pytest.importorskip("PIL")

from benchmarks.bench_scale import is_done, keep
from benchmarks.one_scale_run import cpu_by_phase, decomposition_flops


def _spec(
    weight: tuple[int, ...], output: tuple[int, ...], *, groups: int = 1, methods: int = 1
) -> LayerSpec:
    return LayerSpec(
        name="layer",
        kind="conv2d" if len(weight) == 4 else "linear",
        class_name="Layer",
        weight_shape=weight,
        has_bias=False,
        dtype="float32",
        itemsize=4,
        groups=groups,
        calls=(Call(input_shape=(1, 1), output_shape=output),),
        methods=("weight_svd",) * methods,
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # 2 x 3 x 3 columns and 4 outputs, 8 samples of 25 positions: more rows than either.
        (_spec((4, 2, 3, 3), (1, 4, 5, 5)), 10 * 18**3 + 10 * 4**3),
        # In 2 groups: as many columns, half of the outputs, twice.
        (_spec((4, 2, 3, 3), (1, 4, 5, 5), groups=2), 2 * (10 * 18**3 + 10 * 2**3)),
        # 100 columns of which 8 samples tell 8 directions; 4 outputs.
        (_spec((4, 100), (1, 4)), 10 * 8**3 + 4 * 100 * 8**2 + 10 * 4**3),
        (_spec((4, 100), (1, 4), methods=0), 0),
    ],
)
def test_operations_of_decompositions_are_those_of_a_hand_count(spec: LayerSpec, expected: int) -> None:
    assert decomposition_flops([spec], 8) == expected


def test_cpu_seconds_are_told_for_every_phase_of_a_study() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with cpu_by_phase() as cpu:
        study = sr.study(model, [torch.randn(16, 8), torch.randn(16, 8)], progress=False)
        result = study.apply(study.plan(macs=0.6))
    assert set(cpu) == set(result.seconds)
    before = dict(cpu)
    sr.study(model, [torch.randn(16, 8), torch.randn(16, 8)], progress=False)
    assert cpu == before


def test_rows_replace_those_of_the_same_network_in_the_order_of_the_list(tmp_path: Path) -> None:
    path = tmp_path / "scale.csv"
    keep(path, {"network": "swin_t", "outcome": "ok", "seconds": 1})
    keep(path, {"network": "resnet50", "outcome": "not done in 5 s"})
    keep(path, {"network": "swin_t", "outcome": "ok", "seconds": 2})
    rows = [(row["network"], row["outcome"], row["seconds"]) for row in read_table(path)]
    assert rows == [("resnet50", "not done in 5 s", ""), ("swin_t", "ok", "2")]


@pytest.mark.parametrize(
    ("commit", "outcome", "failed", "kept", "expected"),
    [
        ("abc", "ok", False, False, True),
        ("old", "ok", False, False, False),
        ("old", "ok", False, True, True),
        ("old-dirty", "ok", False, True, False),
        ("abc", "not done in 5 s", False, False, True),
        ("abc", "not done in 5 s", True, False, False),
    ],
)
def test_rows_that_stand_are_not_made_again(
    commit: str, outcome: str, failed: bool, kept: bool, expected: bool
) -> None:
    row = {"torch": "2", "slimrank": "0", "commit": commit, "outcome": outcome}
    now = {"torch": "2", "slimrank": "0", "commit": "abc"}
    assert is_done(row, now, failed=failed, kept=kept) == expected
    assert not is_done(None, now, failed=failed, kept=kept)
