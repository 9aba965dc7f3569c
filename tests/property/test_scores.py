# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seams import never_falling
from slimrank import BudgetError
from slimrank.cost import forms_of, layer_cost, max_rank, pair_cost
from slimrank.plan import Rounding, Structure, structure_of
from slimrank.records import METHODS, PRUNING, Cost, LayerSpec
from slimrank.scores import CHANNELS, ScoreEntry, Scores, score_curves, scored_source
from slimrank.select import Select, select_plan
from specs import Source, conv2d, linear

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def layers(draw: st.DrawFn) -> list[LayerSpec]:
    found = []
    for index in range(draw(st.integers(1, 4))):
        c_out, c_in, kernel = (
            draw(st.integers(4, 24)),
            draw(st.integers(4, 24)),
            draw(st.sampled_from([0, 1, 3])),
        )
        name, has_bias = f"layer{index}", draw(st.booleans())
        if kernel:
            found.append(conv2d(name, c_out, c_in, kernel, size=4, has_bias=has_bias))
        else:
            found.append(linear(name, c_out, c_in, has_bias=has_bias))
    return found


def group_entries() -> st.SearchStrategy[tuple[ScoreEntry, ...]]:
    def entries(scores: dict[int, float]) -> tuple[ScoreEntry, ...]:
        return tuple(
            ScoreEntry(method=PRUNING, form=CHANNELS, rank=count, keep_ratio=count / 9, score=score)
            for count, score in sorted(scores.items())
        )

    return st.dictionaries(st.integers(1, 8), FINITE, max_size=4).map(entries)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Structure, Scores]:
    specs = draw(layers())
    entries: dict[str, tuple[ScoreEntry, ...]] = {}
    for spec in specs:
        own = []
        for method in METHODS:
            for form in forms_of(spec, method):
                whole = layer_cost(spec).macs
                top = min(max_rank(spec, form), whole // pair_cost(spec, form, 1, has_bias=True).macs)
                ranks = draw(st.lists(st.integers(1, top), max_size=4, unique=True)) if top else []
                for rank in sorted(ranks):
                    ratio = pair_cost(spec, form, rank, has_bias=True).macs / whole
                    score = draw(FINITE)
                    own.append(ScoreEntry(method=method, form=form, rank=rank, keep_ratio=ratio, score=score))
        if own:
            entries[spec.name] = tuple(own)
    scores = Scores(
        fingerprint={"structure": draw(st.text(max_size=4)), "weights": "w"},
        baseline=draw(FINITE),
        lower_is_better=draw(st.booleans()),
        methods=METHODS,
        candidates=(0.25, 0.5),
        entries=entries,
        notes=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
        groups=draw(st.dictionaries(st.text(max_size=6), group_entries(), max_size=2)),
    )
    return structure_of(specs), scores


@QUICK
@given(table=tables())
def test_a_file_gives_every_table_back(table: tuple[Structure, Scores], tmp_path: Path) -> None:
    _, scores = table
    scores.save(tmp_path / "scores.json")
    loaded = Scores.load(tmp_path / "scores.json")
    assert loaded == scores
    assert list(loaded.entries) == list(scores.entries)
    assert list(loaded.groups) == list(scores.groups)


@QUICK
@given(
    table=tables(),
    budgets=st.lists(st.floats(0.1, 1), min_size=1, max_size=4),
    multiple=st.integers(1, 6),
    select=st.sampled_from(["greedy", "optimal"]),
    monotonic=st.booleans(),
    interpolate=st.booleans(),
    has_bias=st.booleans(),
)
def test_one_table_serves_every_budget(
    table: tuple[Structure, Scores],
    budgets: list[float],
    multiple: int,
    select: Select,
    monotonic: bool,
    interpolate: bool,
    has_bias: bool,
) -> None:
    structure, scores = table
    # Groups, of which this structure has none, are planned with in tests/integration/test_scores_groups.py.
    scores = replace(scores, groups={})
    before = sum((layer_cost(spec) for spec in structure.layers.values()), Cost(macs=7, params=7, bytes=28))
    source = scored_source(
        Source(structure, before, has_bias=has_bias, methods=METHODS),
        scores,
        scores.fingerprint,
        monotonic=monotonic,
        interpolate=interpolate,
        walk_down=select == "greedy",
        rounding=Rounding(ranks=multiple, widths=multiple),
    )
    for budget in budgets:
        try:
            plan = select_plan(source, budgets={"macs": budget}, select=select, multiple_of=multiple)
        except BudgetError:
            continue
        assert plan.after.macs <= budget * plan.before.macs
        for name, setting in plan.settings.items():
            spec = structure.layers[name]
            assert setting.rank % multiple == 0
            assert setting.rank <= max_rank(spec, setting.form)
            cost = pair_cost(spec, setting.form, setting.rank, has_bias=spec.has_bias)
            smallest = min(e.keep_ratio for e in scores.entries[name] if e.method == setting.method)
            # Never below what was tried.
            assert cost.macs >= smallest * layer_cost(spec).macs * (1 - 1e-12)


@QUICK
@given(table=tables(), interpolate=st.booleans(), walk_down=st.booleans(), multiple=st.integers(1, 4))
def test_treated_losses_fall_with_cost(
    table: tuple[Structure, Scores], interpolate: bool, walk_down: bool, multiple: int
) -> None:
    structure, scores = table
    curves = score_curves(
        scores,
        structure,
        has_bias=True,
        monotonic=not walk_down,
        walk_down=walk_down,
        interpolate=False if not walk_down else interpolate,
        multiple_of=multiple,
    )
    by_method: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for curve in curves:
        points = by_method.setdefault((curve.layer, curve.method), [])
        points += zip(curve.macs.tolist(), curve.damage.tolist(), strict=True)
    if not walk_down and multiple > 1:
        # The last stretch leads to the untouched layer's 0, which may lie above a score that got better.
        return
    for points in by_method.values():
        for macs, loss in points:
            assert all(loss >= other - 1e-6 * abs(other) for dearer, other in points if dearer > macs)


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_the_monotone_fit_is_the_closest_one(length: int) -> None:
    rng = np.random.default_rng(length)
    for _ in range(20):
        values = rng.normal(size=length)
        fitted = never_falling(values)
        assert np.all(np.diff(fitted) >= -1e-12)
        assert math.isclose(fitted.mean(), values.mean(), abs_tol=1e-12)
        # No other monotone sequence is closer: every block is the mean of what it holds, and moving towards
        # any monotone sequence leads away.
        for _ in range(10):
            other = np.sort(rng.normal(size=length))
            assert np.dot(values - fitted, other - fitted) <= 1e-9
        assert np.array_equal(never_falling(np.sort(values)), np.sort(values))
