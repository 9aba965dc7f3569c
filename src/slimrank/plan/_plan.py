# SPDX-License-Identifier: Apache-2.0
"""The plan: what is done to each layer, as data."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import Protocol

from slimrank._errors import OptionError, PlanError
from slimrank.cost import FORMS, layer_cost, pair_cost
from slimrank.plan._file import read_plan, write_plan
from slimrank.plan._manual_file import read_settings
from slimrank.plan._multiple import check_multiple_of
from slimrank.plan._ratio import ratio_of
from slimrank.plan._settings import SettingLike, damage_at, setting_for
from slimrank.plan._structure import Step, Structure, cost_after
from slimrank.records import METRICS, Cost, Curve, Metric, Setting


class PlanSource(Protocol):
    """What a plan is made from: a study, or whatever has these."""

    @property
    def structure(self) -> Structure:
        """Of the model."""
        ...

    @property
    def before(self) -> Cost:
        """Of the whole model."""
        ...

    @property
    def has_bias(self) -> bool:
        """Whether every second factor carries a bias; else only where the layer has one."""
        ...

    @property
    def curves(self) -> Sequence[Curve]:
        """Damage and cost by rank, for every layer, method and form."""
        ...

    @property
    def methods(self) -> Sequence[str]:
        """The methods that were measured."""
        ...

    @property
    def previous(self) -> "Plan | None":
        """The plan that made the model, where it was compressed before."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What is done to each layer, and what that costs.

    Attributes:
        steps: one for each compression of the model, each with the structure that it starts from and the
            setting of each layer that it compresses.
        before: cost of the whole original model, for one sample.
        has_bias: True when every second factor carries a bias, because data were used; else a pair has one
            only where the layer has one.
        select: "optimal", "greedy", "uniform" or "manual".
        damage: predicted for the last step, the sum over the layers, nats per sample once anchored; None if
            nothing was predicted.
        score_loss: predicted loss of the score, the sum over the layers, where the last step was chosen from
            an eval-score table; else None.
        gap: at most this share of ``score_loss``, or else of ``damage``, could be saved by another choice, 0
            to 1; None if not certified.
        multiple_of: ranks are multiples of this: a number, or layer-name glob -> number, first match wins.
        budgets: metric -> keep ratio that was asked for, of the original model.

    Example:
        >>> from slimrank.plan import structure_of
        >>> from slimrank.records import Call, Cost, LayerSpec, Setting
        >>> spec = LayerSpec(
        ...     name="fc", kind="linear", class_name="Linear", weight_shape=(64, 64), has_bias=False,
        ...     dtype="float32", itemsize=4, calls=(Call(input_shape=(1, 64), output_shape=(1, 64)),),
        ...     methods=("weight_svd",),
        ... )
        >>> step = Step(
        ...     structure=structure_of([spec]),
        ...     layers={"fc": (Setting(method="weight_svd", form="linear", rank=16),)},
        ... )
        >>> plan = Plan(steps=(step,), before=Cost(macs=4096, params=4096, bytes=16384), has_bias=False)
        >>> plan
        Plan(manual: 1 of 1 layers, macs 0.5000, params 0.5000, bytes 0.5000)
        >>> print(plan.diff(plan.replace("fc", ("weight_svd", 0.25))))
        layer   this                                     other
        fc      weight_svd linear rank 16 (0.500 macs)   weight_svd linear rank 8 (0.250 macs)
        macs    0.5000                                   0.2500
        params  0.5000                                   0.2500
        bytes   0.5000                                   0.2500
    """

    steps: tuple[Step, ...]
    before: Cost
    has_bias: bool
    select: str = "manual"
    damage: float | None = None
    score_loss: float | None = None
    gap: float | None = None
    multiple_of: int | Mapping[str, int] = 1
    budgets: Mapping[Metric, float] = field(default_factory=dict)

    @classmethod
    def manual(
        cls,
        study: PlanSource,
        settings: Mapping[str, SettingLike] | str | os.PathLike[str],
        *,
        multiple_of: int | Mapping[str, int] = 1,
    ) -> "Plan":
        """A plan typed by hand.

        Args:
            study: the study, for layers and damages.
            settings: layer -> ``(method, ratio)``, ``(method, {"rank": r})`` or ``(method, {"ratio": x})``;
                a "form" may stand beside rank or ratio, else the one with the lowest damage is taken. A
                ratio is of that layer's MACs. Layers not named are left alone. Settings of another plan may
                stand among them: ``{**plan.settings, "fc": ("weight_svd", 0.3)}``. Or the path of a CSV file
                (columns layer, method, ratio or rank, form) or of a JSON file that holds them.
            multiple_of: ranks are rounded up to multiples of this: a number, or layer-name glob -> number.
                A ratio whose rounded rank would cost more than the layer takes the largest multiple that
                does not.

        Returns:
            The plan; its damage is None where the study holds none for a rank.

        Raises:
            UnknownNameError: no such layer, method, form, or a glob that matches nothing.
            OptionError: a setting of the wrong kind, or a method that does not apply to the layer.
            RankError: a rank or ratio that the layer cannot take, or that makes it cost more MACs than
                before.
            FileError: the file cannot be read.
            PlanError: the file holds something else.
        """
        if isinstance(settings, str | os.PathLike):
            settings = read_settings(settings)
        if not isinstance(settings, Mapping):
            raise OptionError(
                f"settings is a {type(settings).__name__}; give layer -> setting, e.g. "
                '{"fc": ("weight_svd", 0.5)}, or the path of a CSV or JSON file'
            )
        check_multiple_of(multiple_of, study.structure.layers)
        chosen = {
            name: setting_for(
                study.structure,
                name,
                asked,
                methods=study.methods,
                has_bias=study.has_bias,
                multiple_of=multiple_of,
                curves=study.curves,
            )
            for name, asked in settings.items()
        }
        kept = {name: setting for name, setting in chosen.items() if setting is not None}
        return plan_on(study, kept, select="manual", multiple_of=multiple_of)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that ``save`` wrote, and that a person may have edited.

        Args:
            path: of the JSON file.

        Returns:
            The plan. Where settings were edited, its ``select`` is "manual", and ``damage``, ``score_loss``,
            ``gap`` and ``budgets``, which belonged to the old ones, are empty.

        Raises:
            FileError: the file is missing or cannot be read.
            PlanError: it is no plan, is cut short, holds unknown keys, layers or settings, or is of another
                format.
            RankError: a rank that the layer does not have.
        """
        return cls(**read_plan(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            FileError: the file cannot be written.
            PlanError: the plan holds a number that is not finite.
        """
        write_plan(path, self)

    @property
    def after(self) -> Cost:
        """Cost of the whole model with this plan, counted from shapes."""
        return cost_after(self.before, self.steps, has_bias=self.has_bias)

    @property
    def start(self) -> Cost:
        """Cost of the model that the last step starts from, counted from shapes."""
        return cost_after(self.before, self.steps[:-1], has_bias=self.has_bias)

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Layer -> setting of the last step, in execution order; layers left alone are not in it."""
        return self.steps[-1].settings if self.steps else {}

    def up_to(self, count: int) -> "Plan":
        """The first steps alone.

        Args:
            count: how many, at least 1.

        Returns:
            This plan where it has no more; else one without ``damage``, ``score_loss``, ``gap`` and
            ``budgets``, which belong to the last step.
        """
        if count >= len(self.steps):
            return self
        return changed(
            self, steps=self.steps[:count], damage=None, score_loss=None, gap=None, budgets={}, multiple_of=1
        )

    def keep_ratio(self, metric: Metric) -> float:
        """Cost after / cost before.

        Args:
            metric: "macs", "params" or "bytes".

        Returns:
            The ratio; 1.0 where the model costs nothing.

        Raises:
            UnknownNameError: no such metric.
        """
        return ratio_of(self.before, self.after, metric)

    def replace(self, layer: str, setting: SettingLike) -> "Plan":
        """This plan with another setting for one layer.

        Args:
            layer: dotted name.
            setting: as in ``manual``, a ``Setting``, or None to leave the layer alone. Where no form is
                given, the one in this plan is kept if the method stays, else the cheaper one is taken.

        Returns:
            A new plan; its ``select`` is "manual", and ``damage``, ``score_loss``, ``gap`` and ``budgets``
            are empty.

        Raises:
            UnknownNameError: no such layer, method or form.
            OptionError: a setting of the wrong kind, or a method that does not apply to the layer.
            RankError: a rank or ratio that the layer cannot take, or that makes it cost more MACs than
                before.
            PlanError: the plan has no step.
        """
        if not self.steps:
            raise PlanError(
                "plan: it has no step, so no layer to set; make one with study.plan or Plan.manual"
            )
        structure = self.steps[-1].structure
        chosen = setting_for(
            structure,
            layer,
            setting,
            methods=tuple(FORMS),
            has_bias=self.has_bias,
            multiple_of=self.multiple_of,
            current=self.settings.get(layer),
        )
        others = {name: one for name, one in self.settings.items() if name != layer}
        settings = others if chosen is None else {**others, layer: chosen}
        return changed(
            self,
            steps=(*self.steps[:-1], step_of(structure, settings)),
            select="manual",
            damage=None,
            score_loss=None,
            gap=None,
            budgets={},
        )

    def diff(self, other: "Plan") -> str:
        """What another plan does otherwise, as a table.

        Args:
            other: the plan to compare with.

        Returns:
            Lines of text: layer, this plan, the other one; then the keep ratios of both.

        Raises:
            OptionError: no plan.
        """
        if not isinstance(other, Plan):
            raise OptionError(f"other is a {type(other).__name__}; give a Plan, e.g. Plan.load(path)")
        mine, theirs = _every_setting(self), _every_setting(other)
        order = [name for plan in (self, other) for step in plan.steps for name in step.structure.layers]
        rows = [
            (name, _told(self, name), _told(other, name))
            for name in dict.fromkeys(order)
            if mine.get(name) != theirs.get(name)
        ]
        if not rows:
            return "no difference: both plans give every layer the same setting"
        rows += [(m, f"{self.keep_ratio(m):.4f}", f"{other.keep_ratio(m):.4f}") for m in METRICS]
        table = [("layer", "this", "other"), *rows]
        widths = [max(len(row[column]) for row in table) for column in (0, 1)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}   {c}" for a, b, c in table)

    def __repr__(self) -> str:
        layers = self.steps[-1].structure.layers if self.steps else {}
        ratios = ", ".join(f"{metric} {self.keep_ratio(metric):.4f}" for metric in METRICS)
        steps = f"step {len(self.steps)}, " if len(self.steps) > 1 else ""
        return f"Plan({steps}{self.select}: {len(self.settings)} of {len(layers)} layers, {ratios})"


def plan_on(
    source: PlanSource,
    settings: Mapping[str, Setting],
    *,
    select: str,
    multiple_of: int | Mapping[str, int] = 1,
    budgets: Mapping[Metric, float] | None = None,
    gap: float | None = None,
) -> Plan:
    """A plan whose last step gives these settings to the model of a source.

    Args:
        source: a study, or whatever has structure, costs and curves.
        settings: layer -> setting.
        select: how they were chosen.
        multiple_of: what their ranks are multiples of.
        budgets: keep ratios of the original model that were asked for.
        gap: of the choice, where it is certified.

    Returns:
        The plan, after the steps of the source's earlier plan; its damage is None where the source's curves
        hold none for a rank.
    """
    damages = [damage_at(source.curves, name, setting) for name, setting in settings.items()]
    # Rounding may leave a damage a hair below zero.
    known = [max(damage, 0.0) for damage in damages if damage is not None]
    earlier = source.previous
    return Plan(
        steps=(*(earlier.steps if earlier else ()), step_of(source.structure, settings)),
        before=earlier.before if earlier else source.before,
        has_bias=source.has_bias,
        select=select,
        damage=float(sum(known)) if len(known) == len(damages) else None,
        gap=gap,
        multiple_of=multiple_of,
        budgets=budgets or {},
    )


def step_of(structure: Structure, settings: Mapping[str, Setting]) -> Step:
    """A step with one setting per layer, in execution order.

    Args:
        structure: of the model.
        settings: layer -> setting; every layer is in the structure.

    Returns:
        The step.
    """
    return Step(
        structure=structure,
        layers={name: (settings[name],) for name in structure.layers if name in settings},
    )


def _every_setting(plan: Plan) -> dict[str, Setting]:
    """Layer -> setting over all steps; a layer that one step replaced is not there for the next."""
    return {name: setting for step in plan.steps for name, setting in step.settings.items()}


def _told(plan: Plan, name: str) -> str:
    """One layer of a plan, for people."""
    step = next((step for step in plan.steps if name in step.settings), None)
    if step is None:
        return "left alone"
    setting, spec = step.settings[name], step.structure.layers[name]
    whole = layer_cost(spec).macs
    pair = pair_cost(spec, setting.form, setting.rank, has_bias=plan.has_bias or spec.has_bias).macs
    share = f" ({pair / whole:.3f} macs)" if whole else ""
    return f"{setting.method} {setting.form} rank {setting.rank}{share}"
