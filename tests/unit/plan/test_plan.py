import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from slimrank import FileError, PlanError, RankError, UnknownNameError
from slimrank.cost import layer_cost, pair_cost
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import Cost, Setting
from specs import Source, conv2d, linear, other

A = conv2d("a", 32, 16, size=8, padding="same")
FC = linear("fc", 40, 60)
NORM = other("Norm", "LayerNorm", (40,), params=80)
OUTSIDE = Cost(macs=1000, params=10, bytes=40)
BEFORE = layer_cost(A) + layer_cost(FC) + layer_cost(NORM) + OUTSIDE
STUDY = Source(structure_of([A, FC, NORM]), BEFORE)
PLAN = replace(
    Plan.manual(
        STUDY,
        {"a": ("spatial_svd", {"rank": 6, "form": "v_h"}), "fc": ("weight_svd", 0.5)},
        multiple_of={"f*": 4, "*": 2},
    ),
    select="optimal",
    damage=0.25,
    gap=0.001,
    budgets={"macs": 0.6},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plan.json"


def test_after_is_before_less_layers_plus_pairs() -> None:
    pairs = pair_cost(A, "v_h", 6, has_bias=True) + pair_cost(FC, "linear", 12, has_bias=True)
    assert PLAN.after == OUTSIDE + layer_cost(NORM) + pairs
    assert PLAN.keep_ratio("params") == PLAN.after.params / BEFORE.params


def test_a_pair_keeps_the_bias_of_its_layer_only_without_data() -> None:
    assert PLAN.after.params - replace(PLAN, has_bias=False).after.params == 32


def test_empty_plans_change_nothing() -> None:
    empty = Plan(steps=(), before=BEFORE, has_bias=True)
    assert empty.after == BEFORE
    assert empty.settings == {}
    assert Plan(steps=(), before=Cost(macs=0, params=0, bytes=0), has_bias=True).keep_ratio("macs") == 1.0
    assert repr(empty).startswith("Plan(manual: 0 of 0 layers, macs 1.0000")
    with pytest.raises(PlanError, match="it has no step"):
        empty.replace("a", None)


def test_plans_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.select = "greedy"  # type: ignore[misc]


def test_keep_ratio_of_unknown_metric() -> None:
    with pytest.raises(UnknownNameError, match="metric 'mac' does not exist; did you mean 'macs'"):
        PLAN.keep_ratio("mac")  # type: ignore[arg-type]


def test_replace_keeps_the_form_where_the_method_stays() -> None:
    other = Plan.manual(STUDY, {"a": ("spatial_svd", {"rank": 6, "form": "h_v"})})
    changed = other.replace("a", ("spatial_svd", {"rank": 3}))
    assert changed.settings["a"] == Setting(method="spatial_svd", form="h_v", rank=3)


def test_replace_takes_the_cheaper_form_of_a_new_method() -> None:
    assert PLAN.replace("a", ("weight_svd", {"rank": 4})).settings["a"].form == "kxk_1x1"


def test_replace_rounds_and_forgets_what_was_predicted() -> None:
    changed = PLAN.replace("fc", ("weight_svd", {"rank": 5}))
    assert changed.settings["fc"].rank == 8
    assert (changed.select, changed.damage, changed.gap, changed.budgets) == ("manual", None, None, {})
    assert PLAN.settings["fc"].rank == 12


def test_replace_by_none_leaves_the_layer_alone() -> None:
    changed = PLAN.replace("a", None)
    assert list(changed.settings) == ["fc"]
    assert list(changed.replace("a", PLAN.settings["a"]).settings) == ["a", "fc"]


def test_diff_shows_only_what_differs() -> None:
    lines = PLAN.diff(PLAN.replace("fc", None)).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "fc", "macs", "params", "bytes"]
    assert "weight_svd linear rank 12 (0.500 macs)" in lines[1]
    assert lines[1].endswith("left alone")
    assert PLAN.diff(PLAN) == "no difference: both plans give every layer the same setting"


def test_load_gives_back_what_was_saved(path: Path) -> None:
    PLAN.save(path)
    loaded = Plan.load(path)
    assert loaded == PLAN
    assert list(loaded.steps[0].structure.layers) == ["a", "fc", "Norm"]
    assert isinstance(loaded.multiple_of, Mapping)
    assert list(loaded.multiple_of) == ["f*", "*"]
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


def test_file_is_sorted_and_short(path: Path) -> None:
    PLAN.save(path)
    text = path.read_text()
    content = json.loads(text)
    assert list(content) == sorted(content)
    assert '"a": [{"form": "v_h", "method": "spatial_svd", "rank": 6}]' in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_save_replaces_a_file(path: Path) -> None:
    path.write_text("old")
    PLAN.save(str(path))
    assert Plan.load(str(path)) == PLAN


def test_edited_ranks_are_counted_anew_and_forget_what_was_predicted(path: Path) -> None:
    PLAN.save(path)
    path.write_text(path.read_text().replace('"rank": 6', '"rank": 4'))
    loaded = Plan.load(path)
    assert loaded.settings["a"].rank == 4
    assert loaded.after.macs < PLAN.after.macs
    assert (loaded.select, loaded.damage, loaded.gap, loaded.budgets) == ("manual", None, None, {})


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        PLAN.save(tmp_path / "no" / "plan.json")


def test_failed_save_keeps_the_old_file(path: Path) -> None:
    PLAN.save(path)
    with pytest.raises(PlanError, match="not finite"):
        replace(PLAN, damage=float("nan")).save(path)
    assert Plan.load(path) == PLAN


def test_save_over_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        PLAN.save(tmp_path / "plan.json")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_load_of_a_missing_file(path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        Plan.load(path)


def test_load_of_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(PlanError, match="no text"):
        Plan.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_load_of_a_file_cut_short(path: Path, share: float) -> None:
    PLAN.save(path)
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(PlanError, match="no JSON, or cut short"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 1', '"format": 2', "has format 2, this version reads 1; install a newer slimrank"),
        ('"format": 1', '"format": true', "has format True, this version reads 1"),
        ('"format": 1', '"formt": 1', '"format" is missing'),
        ('"select"', '"selec"', r"unknown key 'selec'; did you mean 'select'\?"),
        ('"rank": 6', '"rnk": 6', "unknown key 'rnk'; did you mean 'rank'"),
        ('"rank": 6', '"rank": 6.5', "6.5 is no whole number"),
        ('"rank": 6', '"rank": true', "true is no whole number"),
        (', "rank": 6', "", "'rank' is missing"),
        ('"spatial_svd", "rank"', '"spatial_svdd", "rank"', "unknown method 'spatial_svdd'; did you mean"),
        ('"form": "v_h"', '"form": "vv_h"', "spatial_svd has no form 'vv_h'; did you mean 'v_h'"),
        ('"form": "linear"', '"form": "kxk_1x1"', "weight_svd kxk_1x1 does not apply .* can take 'linear'"),
        ('"fc": [{', '"fcc": [{', "'fcc' is no layer of the structure; did you mean 'fc'"),
        ('"fc": [{', '"Norm": [{', "does not apply to this LayerNorm .* no method does"),
        ('"fc": [{', '"a": [{', "'a' stands twice in one object"),
        ('"fc": [{', '"fc": [{}, {', "2 settings; this version takes one"),
        ('"groups": {}', '"groups": {"a": [1]}', "steps.0..groups: 'a' is no group .*; none are known"),
        ('"groups": {}', '"groups": []', "is no object"),
        ('"select": "optimal"', '"select": "best"', "select is 'best'; known are 'optimal'"),
        ('"select": "optimal"', '"select": 3', "3 is no text"),
        ('"has_bias": true,\n', '"has_bias": 1,\n', "1 is neither true nor false"),
        ('"damage": 0.25', '"damage": NaN', "NaN is no number that such a file may hold"),
        ('"damage": 0.25', '"damage": "low"', '"low" is no number'),
        ('{"macs": 0.6}', '{"latency": 0.6}', "unknown key 'latency'"),
        ('["f*", 4]', '["f*", 0]', "give a whole number of at least 1"),
        ('["f*", 4]', '["g*", 4]', r"multiple_of\['g\*'\] matches no layer"),
        ('["f*", 4]', '["f*"]', "an entry is no pair"),
        ('"order": ["a", "fc", "Norm"]', '"order": ["a", "fc"]', r"not hold the same names \('Norm'\)"),
        ('"order": ["a", "fc", "Norm"]', '"order": ["a", "a", "fc", "Norm"]', "one stands twice"),
        ('"order": ["a", "fc", "Norm"]', '"order": 3', "3 is no list"),
        ('"kind": "linear"', '"kind": "lin"', "unknown kind 'lin'; did you mean 'linear'"),
        ("[[[1, 60], [1, 40]]]", "[[[1, 60]]]", "a call holds 1 shapes"),
    ],
)
def test_load_refuses(path: Path, old: str, new: str, message: str) -> None:
    PLAN.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PlanError, match=message):
        Plan.load(path)


@pytest.mark.parametrize(("rank", "limit"), [(49, 48), (0, 48), (-3, 48)])
def test_load_refuses_ranks_that_the_layer_does_not_have(path: Path, rank: int, limit: int) -> None:
    PLAN.save(path)
    path.write_text(path.read_text().replace('"rank": 6', f'"rank": {rank}'))
    with pytest.raises(RankError, match=rf"layers\['a'\]\[0\]: rank {rank} is outside 1..{limit}"):
        Plan.load(path)


def test_steps_default_to_no_groups() -> None:
    assert Step(structure=STUDY.structure, layers={}).groups == {}
