from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest

from slimrank import BudgetError, NonFiniteError, OptionError, UnknownNameError
from slimrank.cost import forms_of, layer_cost, max_rank, pair_costs
from slimrank.plan import Plan, Structure, structure_of
from slimrank.records import Cost, Curve, LayerSpec, Metric
from slimrank.select import Select, reachable_floor, select_plan
from specs import conv2d, linear

SELECTS: tuple[Select, ...] = get_args(Select)
OUTSIDE = Cost(macs=5000, params=100, bytes=400)


@dataclass(frozen=True)
class Source:
    """What a plan of SVD pairs alone reads: neither groups nor blocks."""

    structure: Structure
    before: Cost
    curves: Sequence[Curve]
    has_bias: bool = True
    methods: Sequence[str] = ("weight_svd", "spatial_svd")
    previous: Plan | None = None


def source(specs: Sequence[LayerSpec], *, seed: int = 0, flat: bool = False, scale: float = 1.0) -> Source:
    """Damage falls with rank, by another weight in each layer; or is the same everywhere."""
    rng = np.random.default_rng(seed)
    curves = []
    for spec in specs:
        weight = scale * float(np.exp(rng.normal()))
        for method in spec.methods:
            for form in forms_of(spec, method):
                ranks = np.arange(1, max_rank(spec, form) + 1)
                macs, params = pair_costs(spec, form, ranks, has_bias=True)
                good = macs < layer_cost(spec).macs
                spectrum = np.sort(rng.exponential(size=len(ranks)))[::-1]
                error = 1 - np.cumsum(spectrum) / spectrum.sum()
                damage = np.full(len(ranks), scale) if flat else weight * np.maximum(error, 0)
                curves.append(
                    Curve(
                        layer=spec.name,
                        method=method,
                        form=form,
                        ranks=ranks[good],
                        macs=macs[good],
                        params=params[good],
                        bytes=params[good] * 4,
                        error=error[good],
                        damage=damage[good],
                    )
                )
    return Source(structure_of(specs), sum((layer_cost(spec) for spec in specs), OUTSIDE), tuple(curves))


SPECS = (
    conv2d("stem", 16, 3, size=16),
    conv2d("body.0.conv", 32, 16, size=16),
    conv2d("body.1.conv", 48, 32, size=8),
    conv2d("body.2.conv", 64, 48, size=8),
    conv2d("tail.conv", 64, 64, size=4),
    linear("head", 100, 256),
    linear("last", 10, 100, reason="tied to another layer"),
)
NET = source(SPECS)


def pick(net: Source, select: Select, **budgets: float) -> Plan:
    return select_plan(net, budgets=checked(budgets), select=select)


def checked(budgets: Mapping[str, float]) -> dict[Metric, float]:
    metrics: tuple[Metric, ...] = get_args(Metric)
    return {metric: budgets[metric] for metric in metrics if metric in budgets}


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75, 0.95])
def test_budget_is_kept_and_used(select: Select, flat: bool, ratio: float) -> None:
    plan = pick(source(SPECS, flat=flat), select, macs=ratio)
    assert ratio - 0.01 < plan.keep_ratio("macs") <= ratio
    assert plan.budgets == {"macs": ratio}
    assert plan.select == select


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize(
    "budgets",
    [
        {"macs": 0.5, "params": 0.4},
        {"params": 0.5},
        {"bytes": 0.5},
        {"macs": 0.9, "params": 0.6, "bytes": 0.5},
    ],
)
def test_every_budget_is_kept_and_one_is_used(select: Select, budgets: Mapping[str, float]) -> None:
    plan = pick(NET, select, **budgets)
    slack = [ratio - plan.keep_ratio(metric) for metric, ratio in checked(budgets).items()]
    assert min(slack) >= 0
    assert min(slack) < 0.01


@pytest.mark.parametrize("budgets", [{"macs": 0.4}, {"macs": 0.6}, {"macs": 0.5, "params": 0.4}])
def test_optimal_is_no_worse_than_the_others_and_says_how_near_it_is(budgets: Mapping[str, float]) -> None:
    optimal = pick(NET, "optimal", **budgets)
    others = [pick(NET, select, **budgets) for select in ("greedy", "uniform")]
    assert optimal.gap is not None
    assert 0 <= optimal.gap < 0.01
    for other in others:
        assert other.gap is None
        assert (optimal.damage or 0) <= (other.damage or 0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scale_of_damage_does_not_matter(scale: float) -> None:
    plan = pick(NET, "optimal", macs=0.5, params=0.5)
    scaled = pick(source(SPECS, scale=scale), "optimal", macs=0.5, params=0.5)
    assert scaled.settings == plan.settings


@pytest.mark.parametrize("select", SELECTS)
def test_damage_is_that_of_the_settings(select: Select) -> None:
    plan = pick(NET, select, macs=0.5)
    assert plan.damage == pytest.approx(Plan.manual(NET, plan.settings).damage)


@pytest.mark.parametrize("select", SELECTS)
def test_ranks_are_true_multiples(select: Select) -> None:
    plan = select_plan(
        NET, budgets={"macs": 0.5}, select=select, multiple_of={"body.*": 8, "tail*": 4, "*": 2}
    )
    assert plan.settings
    for name, setting in plan.settings.items():
        assert setting.rank % (8 if name.startswith("body") else 4 if name.startswith("tail") else 2) == 0
    assert plan.keep_ratio("macs") <= 0.5


@pytest.mark.parametrize("select", SELECTS)
def test_a_layer_that_no_glob_of_multiple_of_matches_takes_any_rank(select: Select) -> None:
    whole = select_plan(NET, budgets={"macs": 0.5}, select=select)
    assert select_plan(NET, budgets={"macs": 0.5}, select=select, multiple_of={"last": 8}) == replace(
        whole, multiple_of={"last": 8}
    )


@pytest.mark.parametrize("select", SELECTS)
def test_methods_and_skip_narrow(select: Select) -> None:
    plan = select_plan(
        NET, budgets={"macs": 0.6}, select=select, methods=("weight_svd",), skip=("stem", "ta*")
    )
    assert {setting.method for setting in plan.settings.values()} == {"weight_svd"}
    assert not {"stem", "tail.conv"} & set(plan.settings)


@pytest.mark.parametrize("select", SELECTS)
def test_budget_of_one_leaves_the_model_as_it_is(select: Select) -> None:
    plan = pick(NET, select, macs=1.0, params=1.0)
    assert plan.settings == {}
    assert plan.after == NET.before
    assert plan.damage == 0
    assert plan.gap == (0.0 if select == "optimal" else None)


@pytest.mark.parametrize("select", SELECTS)
def test_the_same_answer_every_time(select: Select) -> None:
    plans = [pick(NET, select, macs=0.45, params=0.5) for _ in range(3)]
    assert plans[0] == plans[1] == plans[2]


def test_uniform_gives_every_layer_nearly_the_same_ratio() -> None:
    plan = pick(NET, "uniform", macs=0.5)
    ratios = []
    for name, setting in plan.settings.items():
        spec = NET.structure.layers[name]
        macs, _ = pair_costs(spec, setting.form, np.array([setting.rank]), has_bias=True)
        ratios.append(int(macs[0]) / layer_cost(spec).macs)
    assert len(ratios) == 6
    assert max(ratios) - min(ratios) < 0.25  # one rank of the stem is a tenth of it


def test_greedy_keeps_each_layer_below_one_threshold() -> None:
    plan = pick(NET, "greedy", macs=0.5)
    damages = [Plan.manual(NET, {name: setting}).damage or 0 for name, setting in plan.settings.items()]
    assert len(damages) >= 4
    # After the top-up a layer may lie lower; the threshold still bounds them all.
    assert max(damages) < 10 * float(np.median(damages))


def test_flat_damage_prefers_more_rank_evenly() -> None:
    plan = pick(source(SPECS, flat=True, scale=0.0), "optimal", macs=0.5)
    assert plan.damage == 0
    assert plan.gap == 0
    assert len(plan.settings) == 6


@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
@pytest.mark.parametrize("select", SELECTS)
def test_the_floor_can_be_asked_for_and_nothing_below(select: Select, metric: Metric) -> None:
    floor = reachable_floor(NET, metric)
    plan = select_plan(NET, budgets={metric: floor}, select=select)
    assert plan.keep_ratio(metric) <= floor
    with pytest.raises(
        BudgetError, match=rf"{metric}=.* cannot be met; the smallest reachable is {metric}=0\.\d+"
    ):
        select_plan(NET, budgets={metric: floor * 0.999}, select=select)


def test_floor_rises_as_choices_narrow() -> None:
    assert reachable_floor(NET, "macs") < reachable_floor(NET, "macs", multiple_of=8)
    assert reachable_floor(NET, "macs") < reachable_floor(NET, "macs", skip=("body*",))
    assert reachable_floor(NET, "macs", skip=("*",)) == 1.0


def test_unreachable_budget_names_what_holds_it_up() -> None:
    message = (
        r"macs=0.01 cannot be met; the smallest reachable is macs=0.2\d+\. Of the macs, these remain: "
        r".*% 'body.1.conv' \(left alone: in skip\).*% compressible layers \(5\) at their smallest"
        r".*% what no layer holds, e.g. attention products.*% 'last' \(left alone: tied to another layer\)"
    )
    with pytest.raises(BudgetError, match=message):
        select_plan(NET, budgets={"macs": 0.01}, skip=("body.1*",))


def test_unreachable_budget_counts_the_layers_it_does_not_name() -> None:
    with pytest.raises(BudgetError, match=r"\(left alone: no rank allowed saves.* 2 more layers left alone"):
        select_plan(NET, budgets={"macs": 0.01}, multiple_of={"head": 1, "*": 4096})


@pytest.mark.parametrize("select", SELECTS)
def test_budgets_that_pull_apart(select: Select) -> None:
    # Each alone can be met, by leaving one method out; together they cannot.
    net = source([conv2d("wide", 8, 64, size=16, stride=4)])
    budgets: dict[Metric, float] = {metric: reachable_floor(net, metric) for metric in ("macs", "params")}
    if all(select_possible(net, budgets, select)):
        pytest.fail("the two floors belong to the same option")
    with pytest.raises(
        BudgetError, match=r"no plan was found that keeps macs=.* together, though each alone can be met"
    ):
        select_plan(net, budgets=budgets, select=select)


def select_possible(net: Source, budgets: Mapping[Metric, float], select: Select) -> list[bool]:
    plans = [select_plan(net, budgets={metric: budgets[metric]}, select=select) for metric in budgets]
    return [plan.settings == plans[0].settings for plan in plans]


@pytest.mark.parametrize("ratio", [0, 0.0, -0.5, 1.0001, 2.0, float("nan"), float("inf"), True, "0.5"])
def test_what_is_no_keep_ratio(ratio: float) -> None:
    with pytest.raises(
        BudgetError, match=r"budget: macs=.* is no keep ratio .* in \(0, 1\]; give e.g. macs=0.5"
    ):
        select_plan(NET, budgets={"macs": ratio})


@pytest.mark.parametrize("budgets", [{}, {"macs": None}])
def test_no_budget(budgets: dict[Metric, float]) -> None:
    words = r"a plan needs a budget; give macs=, params= or bytes= as a keep ratio, e\.g\. macs=0\.5"
    with pytest.raises(BudgetError, match=words):
        select_plan(NET, budgets=budgets)


@pytest.mark.parametrize("budgets", [{"mac": 0.5}, {"latency": 0.5}])
def test_unknown_metric(budgets: dict[Metric, float]) -> None:
    with pytest.raises(
        UnknownNameError, match=r"metric '\w+' does not exist; (did you mean 'macs'|known are 'macs')"
    ):
        select_plan(NET, budgets=budgets)
    with pytest.raises(UnknownNameError, match="metric"):
        reachable_floor(NET, next(iter(budgets)))


def test_unknown_select() -> None:
    with pytest.raises(UnknownNameError, match=r"select: 'optimum' does not exist; did you mean 'optimal'\?"):
        select_plan(NET, budgets={"macs": 0.5}, select="optimum")  # type: ignore[arg-type]


def test_unknown_or_unmeasured_method() -> None:
    with pytest.raises(
        UnknownNameError, match="'spatial' was not measured by the study; did you mean 'spatial_svd'"
    ):
        select_plan(NET, budgets={"macs": 0.5}, methods=("spatial",))
    with pytest.raises(UnknownNameError, match="'spatial_svd' was not measured"):
        select_plan(replace(NET, methods=("weight_svd",)), budgets={"macs": 0.5}, methods=("spatial_svd",))


@pytest.mark.parametrize("methods", ["weight_svd", ()])
def test_methods_are_several(methods: Sequence[str]) -> None:
    with pytest.raises(OptionError, match="names no method; give a tuple"):
        select_plan(NET, budgets={"macs": 0.5}, methods=methods)


def test_skip_matches_something() -> None:
    with pytest.raises(
        UnknownNameError, match=r"skip: 'body.0.con' matches no layer; did you mean 'body.0.conv'"
    ):
        select_plan(NET, budgets={"macs": 0.5}, skip=("body.0.con",))
    with pytest.raises(OptionError, match="skip: 'stem' is one text; give a tuple of globs"):
        select_plan(NET, budgets={"macs": 0.5}, skip="stem")


def test_multiple_of_is_checked() -> None:
    with pytest.raises(OptionError, match="multiple_of is 0; give a whole number"):
        select_plan(NET, budgets={"macs": 0.5}, multiple_of=0)
    with pytest.raises(UnknownNameError, match=r"multiple_of\['nothing'\] matches no layer"):
        select_plan(NET, budgets={"macs": 0.5}, multiple_of={"nothing": 8})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_curves_are_finite(value: float) -> None:
    bad = replace(NET.curves[0], damage=np.full_like(NET.curves[0].damage, value))
    with pytest.raises(NonFiniteError, match="layer 'stem': the damage of weight_svd kxk_1x1 is nan or inf"):
        select_plan(replace(NET, curves=(bad, *NET.curves[1:])), budgets={"macs": 0.5})


def test_rounding_below_zero_counts_as_zero() -> None:
    curves = tuple(replace(curve, damage=np.full_like(curve.damage, -1e-18)) for curve in NET.curves)
    assert pick(replace(NET, curves=curves), "optimal", macs=0.5).damage == 0


def test_a_source_without_curves_reaches_nothing_below_one() -> None:
    bare = replace(NET, curves=())
    assert pick(bare, "optimal", macs=1.0).settings == {}
    with pytest.raises(BudgetError, match=r"the smallest reachable is macs=1\.0000"):
        pick(bare, "optimal", macs=0.99)
