# SPDX-License-Identifier: Apache-2.0
"""Which of several plans wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from seams import Rivals
from slimrank import BudgetError
from slimrank.records import ActivationBytes, Agreement, Note, OutputAgreement, PlannedActivations


@dataclass(frozen=True, kw_only=True)
class Asked:
    """As much of a plan as competing looks at."""

    settings: str
    damage: float | None = 1.0
    budgets: Mapping[str, float] = field(default_factory=lambda: {"macs": 0.5})
    latency: float | None = None
    activations: PlannedActivations | None = None

    @property
    def dropped(self) -> tuple[str, ...]:
        return ()

    @property
    def steps(self) -> tuple[SimpleNamespace, ...]:
        return (SimpleNamespace(structure=SimpleNamespace(sha256=""), key=self.settings),)


@dataclass(frozen=True, kw_only=True)
class Built:
    """As much of a result."""

    divergence: float | None
    macs: float = 0.5
    unit: str = "nats"
    seconds: Mapping[str, float] = field(default_factory=lambda: {"apply": 1.0, "verify": 0.5})
    notes: tuple[Note, ...] = ()
    agreement: Agreement | None = None
    plan: Asked = Asked(settings="as built")
    activation_bytes: ActivationBytes | None = None

    def keep_ratio(self, _metric: str) -> float:
        return self.macs

    def with_notes(self, notes: Sequence[Note], seconds: Mapping[str, float]) -> "Built":
        return replace(self, notes=tuple(notes), seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A study whose plans build what a table says."""

    results: Mapping[str, Built]
    built: list[str]
    seconds: Mapping[str, float] = field(default_factory=lambda: {"capture": 2.0})

    def apply(self, plan: Asked, *, on_layer: object) -> Built:
        assert on_layer is None
        self.built.append(plan.settings)
        return self.results[plan.settings]


def rivals(results: Mapping[str, Built]) -> tuple[Rivals, list[str]]:
    built: list[str] = []
    measured = Measured(results=results, built=built)
    builds = SimpleNamespace(study=measured, begin=lambda *_: None)
    contest = Rivals(
        measured,  # type: ignore[arg-type]
        lambda *_: pytest.fail("no plan is made"),
        None,
        max_damage=1.1,
        builds=builds,  # type: ignore[arg-type]
        competes=False,
    )
    return contest, built


def best_of(results: Mapping[str, Built]) -> Built:
    contest, _ = rivals(results)
    for name in results:
        contest.build(name, Asked(settings=name))  # type: ignore[arg-type]
    return contest.best()  # type: ignore[return-value]


def test_the_lowest_divergence_wins_and_all_are_told() -> None:
    best = best_of({"a": Built(divergence=0.3), "b": Built(divergence=0.1), "c": Built(divergence=0.2)})
    assert best.divergence == 0.1
    assert [note.text for note in best.notes] == [
        "a plan: held-out divergence 0.3 nats",
        "b plan: held-out divergence 0.1 nats (returned)",
        "c plan: held-out divergence 0.2 nats",
    ]
    assert best.seconds == {"capture": 2.0, "apply": 3.0, "verify": 1.5}


def test_an_agreement_is_told_beside_the_divergence() -> None:
    output = OutputAgreement(
        family="categorical", shape=(10,), positions=1, divergence=0.1, lost=0.05, top1=0.98906
    )
    agreed = Built(divergence=0.1, agreement=Agreement({"": output}, 0.1))
    assert [note.text for note in best_of({"a": agreed, "b": Built(divergence=0.2)}).notes] == [
        "a plan: held-out divergence 0.1 nats, 98.91 % same top-1 (returned)",
        "b plan: held-out divergence 0.2 nats",
    ]


def test_the_first_of_equals_wins() -> None:
    assert best_of({"a": Built(divergence=0.1, unit="x"), "b": Built(divergence=0.1, unit="y")}).unit == "x"


def test_what_was_not_measured_does_not_win() -> None:
    assert best_of({"a": Built(divergence=None), "b": Built(divergence=9.0)}).divergence == 9.0


def test_what_is_above_a_budget_does_not_win() -> None:
    over = Built(divergence=0.01, macs=0.7)
    assert best_of({"over": over, "within": Built(divergence=0.4)}).divergence == 0.4
    assert best_of({"within": Built(divergence=0.4), "over": over}).divergence == 0.4
    # Rather that than nothing; its notes tell of the group that stayed.
    assert best_of({"over": over}).divergence == 0.01


def test_what_could_not_be_built_within_a_latency_does_not_win() -> None:
    """A group that stays takes the plan's latency away, and nothing is said of the time then."""
    kept = Asked(settings="as built", latency=0.6)
    contest, _ = rivals({"over": Built(divergence=0.01), "within": Built(divergence=0.4, plan=kept)})
    for name in ("over", "within"):
        contest.build(name, Asked(settings=name, latency=0.6, budgets={}))  # type: ignore[arg-type]
    assert contest.best().divergence == 0.4


def test_what_has_too_many_activations_does_not_win() -> None:
    peak = PlannedActivations(asked=0.5, before=100, after=50)
    contest, _ = rivals(
        {
            "over": Built(divergence=0.01, activation_bytes=ActivationBytes(before=100, after=51)),
            "within": Built(divergence=0.4, activation_bytes=ActivationBytes(before=100, after=50)),
        }
    )
    for name in ("over", "within"):
        contest.build(name, Asked(settings=name, activations=peak, budgets={}))  # type: ignore[arg-type]
    assert contest.best().divergence == 0.4


def test_a_plan_that_is_known_is_not_built_again() -> None:
    contest, built = rivals({"a": Built(divergence=0.3)})
    contest.build("first", Asked(settings="a"))  # type: ignore[arg-type]
    contest.build("second", Asked(settings="a"))  # type: ignore[arg-type]
    assert built == ["a"]
    assert [note.text for note in contest.best().notes] == [
        "first plan: held-out divergence 0.3 nats (returned)",
        "second plan: the same as the first plan",
    ]


@dataclass(frozen=True, kw_only=True)
class Study(Measured):
    """A study with two methods."""

    methods: tuple[str, ...] = ("weight_svd", "spatial_svd")
    curves: tuple[SimpleNamespace, ...] = (
        SimpleNamespace(method="weight_svd"),
        SimpleNamespace(method="spatial_svd"),
    )
    group_curves: tuple[()] = ()
    block_damages: tuple[()] = ()


@pytest.mark.parametrize(
    ("first", "is_bounded"),
    [
        (Built(divergence=0.3), True),
        # Not within the budget, or useless: it tells nothing of the others.
        (Built(divergence=0.3, macs=0.7), False),
        (Built(divergence=float("inf")), False),
    ],
)
def test_what_is_predicted_to_be_much_worse_is_not_built(first: Built, is_bounded: bool) -> None:
    results = {
        "all": first,
        "even": Built(divergence=0.4),
        "w": Built(divergence=0.2),
        "s": Built(divergence=0.5),
    }
    damages = {"all": 1.0, "even": 20.0, "w": 1.05, "s": 1.2}
    names = {("uniform", None): "even", ("optimal", ("weight_svd",)): "w", ("optimal", ("spatial_svd",)): "s"}

    def plan_of(_study: object, select: str, only: tuple[str, ...] | None) -> Asked:
        name = names[select, only]
        return Asked(settings=name, damage=damages[name])

    built: list[str] = []
    study = Study(results=results, built=built)
    builds = SimpleNamespace(study=study, begin=lambda *_: None)
    contest = Rivals(study, plan_of, None, max_damage=1.1, builds=builds, competes=False)  # type: ignore[arg-type]
    contest.build("optimal", Asked(settings="all", damage=1.0))  # type: ignore[arg-type]
    contest.build_others()
    best = contest.best()
    assert best.divergence == 0.2
    assert built == (["all", "w"] if is_bounded else ["all", "even", "w", "s"])
    told = [note.text for note in best.notes if "not built" in note.text]
    assert told == (
        [
            "uniform plan: not built, its predicted damage is 20 times that of the optimal plan",
            "optimal, spatial_svd only plan: not built, its predicted damage is 1.2 times that of the "
            "optimal plan",
        ]
        if is_bounded
        else []
    )


def test_there_is_a_plan() -> None:
    contest, _ = rivals({})
    with pytest.raises(BudgetError, match="there is no plan to build"):
        contest.best()
