from dataclasses import replace

import numpy as np
import pytest

from slimrank import OptionError, RankError, UnknownNameError
from slimrank.cost import forms_of, layer_cost, max_rank, pair_cost, pair_costs
from slimrank.plan import Plan, SettingLike, structure_of
from slimrank.records import Call, Cost, Curve, LayerSpec, Setting
from specs import Source, conv2d, linear, other

FC = linear("fc", 40, 60)
NORM = other("norm", "LayerNorm", (40,), params=80)


def source(*specs: LayerSpec, worst: str | None = None) -> Source:
    """Damage falls with rank; the form ``worst`` has twice the damage of the others."""
    curves = []
    for spec in specs:
        for method in spec.methods:
            for form in forms_of(spec, method):
                ranks = np.arange(1, max_rank(spec, form) + 1)
                macs, params = pair_costs(spec, form, ranks, has_bias=True)
                good = macs < layer_cost(spec).macs
                damage = np.linspace(1, 0, len(ranks))[good] * (2 if form == worst else 1)
                curves.append(
                    Curve(
                        layer=spec.name,
                        method=method,
                        form=form,
                        ranks=ranks[good],
                        macs=macs[good],
                        params=params[good],
                        bytes=params[good] * 4,
                        error=damage,
                        damage=damage,
                    )
                )
    before = sum((layer_cost(spec) for spec in specs), Cost(macs=0, params=0, bytes=0))
    return Source(structure_of(specs), before, tuple(curves))


STUDY = source(conv2d("a", 32, 16, size=8), conv2d("b.conv", 24, 24, size=8, stride=2), FC, NORM)


def one(name: str, asked: SettingLike, multiple_of: int = 1, study: Source = STUDY) -> Setting:
    return Plan.manual(study, {name: asked}, multiple_of=multiple_of).settings[name]


def test_ratio_is_the_largest_rank_that_costs_no_more() -> None:
    chosen = one("fc", ("weight_svd", 0.5))
    assert chosen == Setting(method="weight_svd", form="linear", rank=12)
    assert pair_cost(FC, "linear", 12, has_bias=True).macs <= 0.5 * layer_cost(FC).macs
    assert pair_cost(FC, "linear", 13, has_bias=True).macs > 0.5 * layer_cost(FC).macs


@pytest.mark.parametrize("rank", range(1, 25))
def test_ratio_of_a_rank_gives_that_rank_back(rank: int) -> None:
    ratio = pair_cost(FC, "linear", rank, has_bias=True).macs / layer_cost(FC).macs
    assert one("fc", ("weight_svd", ratio)).rank == rank


@pytest.mark.parametrize(
    ("how", "multiple_of", "rank"),
    [
        ({"ratio": 0.5}, 8, 16),
        ({"rank": 9}, 8, 16),
        ({"rank": 16}, 8, 16),
        ({"rank": 1}, 24, 24),
        ({"ratio": 1.0}, 1, 24),
        ({"ratio": 1.0}, 10, 20),  # 30 would cost more than the layer
    ],
)
def test_ranks_round_up_to_true_multiples(how: dict[str, float], multiple_of: int, rank: int) -> None:
    assert one("fc", ("weight_svd", how), multiple_of).rank == rank


def test_multiple_of_goes_by_first_glob() -> None:
    settings: dict[str, SettingLike] = {"a": ("weight_svd", {"rank": 3}), "fc": ("weight_svd", {"rank": 3})}
    plan = Plan.manual(STUDY, settings, multiple_of={"f*": 4, "*c": 5})
    assert {name: setting.rank for name, setting in plan.settings.items()} == {"a": 3, "fc": 4}


@pytest.mark.parametrize(("worst", "form"), [("v_h", "h_v"), ("h_v", "v_h")])
def test_form_not_given_is_the_one_with_the_lowest_damage(worst: str, form: str) -> None:
    study = source(conv2d("a", 20, 20, size=8), worst=worst)
    assert one("a", ("spatial_svd", 0.5), study=study).form == form
    assert one("a", ("spatial_svd", {"rank": 5}), study=study).form == form


def test_form_given_is_kept() -> None:
    assert one("a", ("spatial_svd", {"rank": 5, "form": "h_v"})).form == "h_v"
    assert one("a", ("weight_svd", {"ratio": 0.4, "form": "1x1_kxk"})).form == "1x1_kxk"


def test_form_without_curves_is_the_cheaper_one() -> None:
    study = replace(STUDY, curves=())
    # Stride 2: a 1x1 first would work on the whole input map.
    assert one("b.conv", ("weight_svd", {"rank": 4}), study=study).form == "kxk_1x1"


def test_damage_is_the_sum_over_the_layers_or_none() -> None:
    settings: dict[str, SettingLike] = {"a": ("weight_svd", 0.5), "fc": ("weight_svd", 0.5)}
    plan = Plan.manual(STUDY, settings)
    each = [Plan.manual(STUDY, {name: asked}).damage or 0 for name, asked in settings.items()]
    assert plan.damage == pytest.approx(sum(each))
    assert Plan.manual(replace(STUDY, curves=()), settings).damage is None
    assert Plan.manual(STUDY, {}).damage == 0


def test_order_is_that_of_the_model_and_none_leaves_alone() -> None:
    plan = Plan.manual(STUDY, {"fc": ("weight_svd", 0.5), "b.conv": None, "a": ("weight_svd", 0.5)})
    assert list(plan.settings) == ["a", "fc"]


def test_a_setting_is_taken() -> None:
    asked = Setting(method="spatial_svd", form="h_v", rank=6)
    assert one("a", asked) == asked


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("b.con", ("weight_svd", 0.5), r"layer 'b.con': the model has none; did you mean 'b.conv'\?"),
        ("fc", ("weight_svdd", 0.5), r"method 'weight_svdd' is not there; did you mean 'weight_svd'"),
        ("a", ("spatial_svd", {"rank": 2, "form": "vh"}), "spatial_svd has no form 'vh'"),
        ("a", ("spatial_svd", {"rank": 2, "form": 3}), "spatial_svd has no form 3"),
    ],
)
def test_unknown_names(name: str, asked: SettingLike, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        one(name, asked)


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("fc", ("spatial_svd", 0.5), "spatial_svd does not apply to this Linear; it can take 'weight_svd'"),
        ("norm", ("weight_svd", 0.5), "does not apply to this LayerNorm; no method for LayerNorm"),
        ("fc", ("weight_svd", {"rank": 2, "form": "kxk_1x1"}), "form 'kxk_1x1' does not apply .* 'linear'"),
        ("fc", 0.5, r"the setting is 0.5; give \(method, ratio\)"),
        ("fc", ("weight_svd",), "the setting is"),
        ("fc", (0.5, "weight_svd"), "the setting is"),
        ("fc", ("weight_svd", 1), "ratio 1 is no fraction"),
        ("fc", ("weight_svd", True), "ratio True is no fraction"),
        ("fc", ("weight_svd", "0.5"), "ratio '0.5' is no fraction"),
        ("fc", ("weight_svd", {"rank": 2.5}), "rank 2.5 is no whole number"),
        ("fc", ("weight_svd", {"rank": True}), "rank True is no whole number"),
        ("fc", ("weight_svd", {"rnk": 2}), "'rnk' is no key of a setting; did you mean 'rank'"),
        ("fc", ("weight_svd", {"rank": 2, "ratio": 0.5}), "give one of"),
        ("fc", ("weight_svd", {}), "give one of"),
    ],
)
def test_wrong_kinds(name: str, asked: SettingLike, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        one(name, asked)


@pytest.mark.parametrize(
    ("asked", "multiple_of", "message"),
    [
        (("weight_svd", 0.0), 1, r"ratio 0.0 is outside \(0, 1\]"),
        (("weight_svd", 1.01), 1, "ratio 1.01 is outside"),
        (("weight_svd", -0.5), 1, "ratio -0.5 is outside"),
        (("weight_svd", NAN), 1, "ratio nan is outside"),
        (("weight_svd", 0.01), 1, "below the smallest reachable one, 0.0417 at rank 1"),
        (("weight_svd", {"rank": 0}), 1, "rank 0 is below 1"),
        (("weight_svd", {"rank": 41}), 1, "rank 41 is outside 1..24: the layer has no such rank"),
        (("weight_svd", {"rank": 25}), 1, "outside 1..24: the pair would cost more MACs than the layer"),
        (("weight_svd", {"rank": 17}), 16, r"\(rounded up to 32, a multiple of 16\) is outside 16..16"),
        (("weight_svd", 0.5), 25, "1..24 that save MACs, and none is a multiple of 25"),
    ],
)
def test_ranks_out_of_reach(asked: SettingLike, multiple_of: int, message: str) -> None:
    with pytest.raises(RankError, match=message):
        one("fc", asked, multiple_of)


def test_layer_too_small_for_any_rank() -> None:
    tiny = replace(FC, weight_shape=(1, 1), calls=(Call(input_shape=(1, 1), output_shape=(1, 1)),))
    with pytest.raises(RankError, match="costs more MACs than the layer at every rank"):
        one("fc", ("weight_svd", 0.5), study=source(tiny))


def test_layer_never_called_takes_ranks_only() -> None:
    study = source(replace(FC, calls=()))
    assert one("fc", ("weight_svd", {"rank": 3}), study=study).rank == 3
    with pytest.raises(RankError, match="never called"):
        one("fc", ("weight_svd", 0.5), study=study)


def test_method_that_was_not_measured() -> None:
    study = replace(STUDY, methods=("weight_svd",))
    with pytest.raises(UnknownNameError, match="'spatial_svd' is not there"):
        one("a", ("spatial_svd", 0.5), study=study)


@pytest.mark.parametrize("multiple_of", [0, -2, 1.5, True, {"a": 0}])
def test_multiple_of_is_a_whole_number(multiple_of: int) -> None:
    with pytest.raises(OptionError, match="give a whole number of at least 1"):
        Plan.manual(STUDY, {}, multiple_of=multiple_of)


def test_multiple_of_glob_matches_something() -> None:
    with pytest.raises(
        UnknownNameError, match=r"multiple_of\['b.con'\] matches no layer; did you mean 'b.conv'"
    ):
        Plan.manual(STUDY, {}, multiple_of={"b.con": 8})
