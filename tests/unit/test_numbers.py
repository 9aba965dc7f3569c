# SPDX-License-Identifier: Apache-2.0
"""Decimal, Fraction and numpy scalars are numbers wherever a caller gives one."""

import inspect
import math
import pickle
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.latency import check_conditions
from slimrank.plan import check_latency, milliseconds_of
from slimrank.records import weights_of

# Written with few digits, so that each kind means the same number.
_KINDS: Mapping[str, Callable[[float], object]] = {
    "Decimal": lambda number: Decimal(str(number)),
    "Fraction": lambda number: Fraction(str(number)),
    "numpy, wide": lambda number: np.int64(number) if isinstance(number, int) else np.float64(number),
    "numpy, narrow": lambda number: np.int32(number) if isinstance(number, int) else np.float32(number),
}
kinds = pytest.mark.parametrize("kind", list(_KINDS))


def _given(value: object, kind: str) -> object:
    """The same with every number in it of another kind."""
    if isinstance(value, Mapping):
        return {key: _given(item, kind) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_given(item, kind) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _KINDS[kind](value) if is_number else value


# --- Numbers alone ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (0.7, 0.7),
        (Decimal("0.7"), 0.7),
        (Fraction(7, 10), 0.7),
        (np.float64(0.7), 0.7),
        # By its digits; its value is 0.699999988.
        (np.float32(0.7), 0.7),
        (np.float16(0.7), 0.7),
        (np.int8(3), 3.0),
        (Decimal("Infinity"), math.inf),
        (Fraction(10**400), math.inf),
        (Fraction(-(10**400)), -math.inf),
        (True, None),
        (np.True_, None),
        ("0.7", None),
        (None, None),
        (1j, None),
        (torch.tensor(0.7), None),
        (np.array([0.7]), None),
    ],
)
def test_real_numbers(value: object, expected: float | None) -> None:
    assert seams.real_number(value) == expected


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("sNaN"), math.nan, np.float32("nan")])
def test_nan_stays_one(value: object) -> None:
    number = seams.real_number(value)
    assert number is not None
    assert math.isnan(number)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (8, 8),
        (np.int64(8), 8),
        (Decimal(8), 8),
        (Decimal("8.0"), 8),
        (Fraction(8), 8),
        (8.0, None),
        (np.float64(8), None),
        (Decimal("8.5"), None),
        (Fraction(17, 2), None),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("Infinity"), None),
        (True, None),
        ("8", None),
        (None, None),
    ],
)
def test_whole_numbers(value: object, expected: int | None) -> None:
    number = seams.whole_number(value)
    assert number == expected
    assert type(number) in {int, type(None)}


# --- Options ---

# Every numeric option of every public call, with a value that it may have.
_STUDY: Mapping[str, object] = {"draws": 2, "holdout": 0.4, "seed": 3, "memory": 2_000_000_000}
_BUDGETS: Mapping[str, object] = {"macs": 0.8, "params": 0.9, "bytes": 0.9}
_TRAINING: Mapping[str, object] = {
    "epochs": 2,
    "lr": 0.01,
    "weight_decay": 0.1,
    "clip_norm": 0.5,
    "holdout": 0.4,
    "seed": 3,
}
_TIMED: Mapping[str, object] = {"threads": 1, "batch": 2}
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "study": _STUDY,
    "apply": _STUDY,
    "compress": {**_STUDY, **_BUDGETS, **_TIMED, "latency": 0.9, "multiple_of": 2},
    "Study.plan": {**_BUDGETS, "latency": 0.9, "multiple_of": 2},
    "measure_scores": {"candidates": 3, "workers": 1, "prefix_cache": 1_000_000},
    "smallest": {"max_drop": 0.5, "tolerance": 0.25, "multiple_of": 2},
    "search_split": {"macs": 0.5, "params": None, "bytes": None, "splits": [0.75], "multiple_of": 2},
    "finetune": _TRAINING,
    "distill": {**_TRAINING, "temperature": 2.5, "feature_weight": 0.5},
    "export": {**_TIMED, "max_quant_drop": 0.5},
    "Result.export": {**_TIMED, "max_quant_drop": 0.5},
    "measure_latency": _TIMED,
    "prepare_latency": _TIMED,
    "meet_latency": {**_BUDGETS, "latency": 0.9, "rounds": 2, "multiple_of": 2},
    "Study.pareto": {"points": 4},
    "from_onnx": {"seed": 3},
    "serve": {"port": 0},
    "Plan.manual": {"multiple_of": 2},
    "Plan.up_to": {"count": 1},
}
# Numbers by what they are called, where a default does not show it.
_NUMERIC = {name for options in OPTIONS.values() for name in options} | {"max_quant_drop", "baseline"}


def test_the_table_names_every_numeric_option() -> None:
    calls: dict[str, Callable[..., object]] = {
        name: member
        for name in sr.__all__
        if callable(member := getattr(sr, name)) and not inspect.isclass(member)
    }
    calls |= {
        f"{kind.__name__}.{name}": member
        for kind in (sr.Study, sr.Plan, sr.Result, sr.Scores)
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }
    numeric: dict[str, set[str]] = {}
    for name, call in calls.items():
        for option in inspect.signature(call).parameters.values():
            is_number = isinstance(option.default, int | float) and not isinstance(option.default, bool)
            if is_number or option.name in _NUMERIC:
                numeric.setdefault(name, set()).add(option.name)
    # Read beside those of studies and scores, below.
    told = {name: set(options) for name, options in OPTIONS.items()}
    told |= {"Study.load": {"memory"}, "Scores.from_aimet": {"baseline"}}
    assert numeric == told


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 12, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def study(model: nn.Module, batches: list[torch.Tensor]) -> sr.Study:
    return sr.study(model, batches, progress=False, **_STUDY)


def _weights(model: nn.Module) -> list[list[float]]:
    return [parameter.detach().flatten().tolist() for parameter in model.parameters()]


@kinds
def test_of_a_study(
    kind: str, model: nn.Module, batches: list[torch.Tensor], study: sr.Study, tmp_path: Path
) -> None:
    given = _given(dict(_STUDY), kind)
    other = sr.study(model, batches, progress=False, run_dir=tmp_path, **given)
    assert other.fingerprint == study.fingerprint
    # Read again, as its files were written.
    loaded = sr.Study.load(tmp_path, model=model, memory=given["memory"])
    assert loaded.fingerprint == study.fingerprint
    assert weights_of(_given({"a": 0.7, "b": 2}, kind)) == {"a": 0.7, "b": 2.0}
    plan = study.plan(macs=0.8)
    results = [sr.apply(model, plan, batches, progress=False, **options) for options in (given, dict(_STUDY))]
    assert _weights(results[0].model) == _weights(results[1].model)


@kinds
def test_of_plans(kind: str, study: sr.Study, tmp_path: Path) -> None:
    for options in (
        {**_BUDGETS, "multiple_of": 2},
        {"macs": 0.7, "multiple_of": {"0": 4, "*": 2}},
        {"macs": 0.7, "multiple_of": {"0": 4, "*": "auto"}},
    ):
        plan = study.plan(**_given(options, kind))
        assert plan == study.plan(**options)
        plan.save(tmp_path / "plan.json")
        assert sr.Plan.load(tmp_path / "plan.json") == plan
    for typed in (
        {"0": ("weight_svd", {"rank": 3}), "2": ("weight_svd", 0.4)},
        {"0": ("channel_pruning", {"keep": 13})},
        {"0": ("channel_pruning", 0.7)},
        {"0": ("channel_pruning", {"channels_kept": [0, 3, 5, 8]})},
    ):
        manual = sr.Plan.manual(study, _given(typed, kind), multiple_of=_given(2, kind))
        assert manual == sr.Plan.manual(study, typed, multiple_of=2)
        manual.save(tmp_path / "manual.json")
        assert sr.Plan.load(tmp_path / "manual.json").steps == manual.steps
    plan = study.plan(macs=0.8)
    assert plan.replace("0", ("weight_svd", _given(0.3, kind))) == plan.replace("0", ("weight_svd", 0.3))
    assert plan.up_to(_given(1, kind)) == plan


@kinds
def test_of_a_curve_of_plans_and_a_port(kind: str, study: sr.Study, tmp_path: Path) -> None:
    given, plain = (study.pareto(points=points, measure=False) for points in (_given(4, kind), 4))
    assert [point.plan for point in given.points] == [point.plan for point in plain.points]
    (tmp_path / "events.jsonl").write_text("")
    with sr.serve(tmp_path, port=_given(0, kind)) as live:
        assert live.url


@kinds
def test_of_scores(kind: str, study: sr.Study, batches: list[torch.Tensor], tmp_path: Path) -> None:
    def score(model: nn.Module) -> object:
        with torch.no_grad():
            return _given(round(float(model(batches[0]).square().mean()), 3), kind)

    for options in (OPTIONS["measure_scores"], {"candidates": [0.3, 0.7]}):
        path = tmp_path / f"{len(options)}.json"
        scores = sr.measure_scores(study, score, path=path, progress=False, **_given(dict(options), kind))
        assert scores == sr.measure_scores(study, score, progress=False, **options)
        assert sr.Scores.load(path) == scores
    old = tmp_path / "old.pkl"
    old.write_bytes(pickle.dumps({"0": {Decimal("0.5"): 0.9}}))
    read = sr.Scores.from_aimet(old, study, method="weight_svd", baseline=_given(0.95, kind))
    assert read.baseline == pytest.approx(0.95, abs=1e-7)
    assert type(read.baseline) is float


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Decimal"])
def test_of_searches(kind: str, study: sr.Study) -> None:
    smallest = [sr.smallest(study, **options) for options in _both("smallest", kind)]
    assert smallest[0].plan == smallest[1].plan
    split = [
        sr.search_split(study, methods=("weight_svd", "channel_pruning"), **options)
        for options in _both("search_split", kind)
    ]
    assert split[0].plan == split[1].plan


def _both(call: str, kind: str) -> list[dict[str, object]]:
    """The options of a call, of this kind and plain."""
    options = {name: value for name, value in OPTIONS[call].items() if value is not None}
    return [{name: _given(value, kind) for name, value in options.items()}, options]


@kinds
def test_of_training(kind: str, model: nn.Module, batches: list[torch.Tensor], tmp_path: Path) -> None:
    data = [(x, torch.zeros(len(x), dtype=torch.int64)) for x in batches]
    tuned = [
        sr.finetune(model, data, nn.CrossEntropyLoss(), run_dir=tmp_path / "tuned", progress=False, **options)
        # The second goes on in the directory of the first, which has to be of the same options.
        for options in _both("finetune", kind)
    ]
    assert _weights(tuned[0]) == _weights(tuned[1])
    distilled = [
        sr.distill(
            tuned[0],
            model,
            batches,
            likelihood="categorical",
            run_dir=tmp_path / "distilled",
            progress=False,
            **options,
        )
        for options in _both("distill", kind)
    ]
    assert _weights(distilled[0]) == _weights(distilled[1])


@kinds
def test_of_measured_time(kind: str) -> None:
    for given, plain in (_both("measure_latency", kind), _both("prepare_latency", kind)):
        conditions = {"backend": "torch", "precision": "float32"}
        checked = [check_conditions(**conditions, **options) for options in (given, plain)]
        assert checked[0] == checked[1] == (1, 2)
        assert all(type(number) is int for number in checked[0])
    ratio = _given(0.9, kind)
    check_latency(ratio)
    assert milliseconds_of(ratio) is None


@kinds
def test_of_exports(kind: str, study: sr.Study, tmp_path: Path) -> None:
    result = study.apply(study.plan(macs=0.8))
    options = _given(dict(_TIMED), kind)
    exported = result.export(tmp_path / "model.pt2", format="torch", **options)
    assert (exported.threads, exported.batch) == (1, 2)
    assert type(exported.batch) is int


@kinds
def test_out_of_range_is_refused_all_the_same(kind: str, study: sr.Study, model: nn.Module) -> None:
    number = _KINDS[kind]
    with pytest.raises(sr.BudgetError, match="is no keep ratio"):
        study.plan(macs=number(1.5))
    with pytest.raises(sr.OptionError, match=r"multiple_of is .*; give a whole number"):
        study.plan(macs=0.5, multiple_of=number(1.5))
    with pytest.raises(sr.OptionError, match="no whole number"):
        sr.Plan.manual(study, {"0": ("weight_svd", {"rank": number(2.5)})})
    with pytest.raises(sr.RankError, match="below 1"):
        sr.Plan.manual(study, {"0": ("weight_svd", {"rank": number(0)})})
    with pytest.raises(sr.RankError, match="outside"):
        sr.Plan.manual(study, {"0": ("weight_svd", number(1.5))})
    with pytest.raises(sr.OptionError, match="max_drop="):
        sr.smallest(study, max_drop=number(-1))
    with pytest.raises(sr.OptionError, match="count="):
        study.plan(macs=0.8).up_to(number(0))
    with pytest.raises(sr.OptionError, match="draws="):
        sr.study(model, [torch.zeros(4, 12)], draws=number(2.5), progress=False)
