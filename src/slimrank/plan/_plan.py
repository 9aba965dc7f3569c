# SPDX-License-Identifier: Apache-2.0
"""The plan: what is done to each layer, as data."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from dataclasses import replace as changed
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Protocol, TypeVar, cast

from slimrank._errors import OptionError, PlanError, RankError
from slimrank._numbers import whole_number
from slimrank.cost import group_is_inside
from slimrank.files import Json
from slimrank.plan._diff import Difference, plan_difference
from slimrank.plan._file import PlanFields, plan_from_json, plan_to_json, read_plan, write_plan
from slimrank.plan._layer_setting import SettingLike, damage_at, setting_for
from slimrank.plan._rounding import (
    MultipleOf,
    Multiples,
    Rounding,
    check_multiple_of,
    has_auto,
    rounding_steps,
    used_multiples,
)
from slimrank.plan._settings_file import read_settings
from slimrank.plan._step import (
    block_damage_at,
    group_damage_at,
    is_inside,
    slimmable_groups,
    step_of,
)
from slimrank.plan._structure import Step, Structure, cost_after, names_of
from slimrank.plan._typed_settings import (
    SettingsByKind,
    check_known,
    groups_called,
    settings_by_kind,
    units_for,
)
from slimrank.records import (
    ALL_METHODS,
    METRICS,
    BlockDamage,
    Cost,
    Curve,
    GroupCurve,
    Metric,
    PlannedActivations,
    PlannedLatency,
    Setting,
    ratio_of,
)

_Made = TypeVar("_Made")


class PlanSource(Protocol):
    """What a plan is made from: a study, or anything else with these properties."""

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
    def group_curves(self) -> Sequence[GroupCurve]:
        """Damage by units kept, for every group that can be slimmed; read where a group is asked for."""
        ...

    @property
    def block_damages(self) -> Sequence[BlockDamage]:
        """Damage of every block that can be dropped; read where one is asked for."""
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
            setting of each layer that it compresses, the channels that each slimmed group keeps, and the
            blocks that are dropped.
        before: cost of the whole original model, for one sample.
        has_bias: True when every second factor, and every layer that is fitted to fewer channels, carries a
            bias, because data were used; else only where the layer has one.
        select: "optimal", "greedy", "uniform" or "manual".
        damage: predicted for the last step, the sum over layers, groups and blocks, nats per sample once
            anchored; None if something was not predicted.
        score_loss: predicted loss of the score, the sum over the layers, where the last step was chosen from
            an eval-score table; else None.
        gap: at most this share of ``score_loss``, or else of ``damage``, could be saved by another choice, 0
            to 1; None if not certified.
        multiple_of: ranks, and outputs that a group leaves its first producer, are multiples of this: a
            number, or name glob -> number, first match wins. Where it was "auto", what was used: one number,
            or that of each layer and group.
        budgets: metric -> keep ratio that was asked for, of the original model.
        asked: metric -> what was asked for, where that was no plain ratio: "50%", "2MB" or "19_000_000".
        relaxed: layers and groups whose rank or width is no multiple by the rule of "auto", because the
            budget is out of reach with it, or they were set by hand; None where no multiple was "auto".
        latency: what was asked for and predicted, where the last step was chosen by measured times; else
            None.
        fixed: names of what was given, not chosen (``Study.plan(fixed=)``): under "layers", "groups" and
            "blocks". What was given is what the plan does to them.
        activations: what was asked for and counted, where the last step was chosen for a peak of
            activations; else None.

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
    multiple_of: Multiples = 1
    budgets: Mapping[Metric, float] = field(default_factory=dict)
    asked: Mapping[Metric, str] = field(default_factory=dict)
    relaxed: tuple[str, ...] | None = None
    latency: PlannedLatency | None = None
    fixed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activations: PlannedActivations | None = None

    @classmethod
    def manual(
        cls,
        study: PlanSource,
        settings: Mapping[str, SettingLike] | str | os.PathLike[str],
        *,
        multiple_of: MultipleOf = 1,
    ) -> "Plan":
        """A plan typed by hand.

        Args:
            study: the study, for layers and damages.
            settings: layer -> ``(method, ratio)``, ``(method, {"rank": r})`` or ``(method, {"ratio": x})``;
                a "form" may stand beside rank or ratio, else the one with the lowest damage is taken. Of
                three factors ``{"rank": [r_in, r]}`` gives both ranks; with one the other follows. A ratio
                is of that layer's MACs, before its channels are slimmed. Group, or layer that makes the
                channels of one -> ``("channel_pruning", ratio)``, the share of its units to keep, or
                ``{"keep": n}`` or ``{"channels_kept": [0, 3, 5]}`` in its place. Block -> ``"drop"``. A
                layer may have both: a list of its two settings. What is not named is left alone. Settings of
                another plan may stand among them: ``{**plan.settings, "fc": ("weight_svd", 0.3)}``. Or the
                path of a CSV file (columns layer, method, ratio or rank, form, keep, channels_kept) or of a
                JSON file that holds them.
            multiple_of: ranks and units kept are rounded up to multiples of this: a number or "auto", or
                name glob -> one of these. A ratio whose rounded rank would cost more than the layer, or a
                width beyond the units of the group, takes the largest multiple that does not; "auto" takes a
                smaller number where a layer or group has no such multiple.

        Returns:
            The plan; its damage is None where the study holds none for a rank, a width or a block.

        Raises:
            UnknownNameError: no such layer, group, block, method, form, or a glob that matches nothing.
            OptionError: a setting of the wrong kind, a method that does not apply to the layer, or a width
                without a curve that says which units go.
            RankError: a rank, ratio or width that cannot be, or that makes the layer, slimmed by its
                groups, cost more MACs than without the pair.
            FileError: the file cannot be read.
            PlanError: the file holds something else, or something inside a dropped block is named.
        """
        settings = _read(settings)
        structure = study.structure
        check_multiple_of(multiple_of, names_of(structure))
        typed = settings_by_kind(structure, settings, methods=study.methods)
        # Read only where a group is named: a source without groups need not have curves of them.
        curves = study.group_curves if typed.groups else ()
        steps = rounding_steps(multiple_of, structure)
        groups = _units_that_stay(structure, typed.groups, steps, curves)

        def setting_with(name: str, rounding: Rounding) -> Setting:
            return setting_for(
                structure,
                name,
                typed.layers[name],
                methods=study.methods,
                has_bias=study.has_bias,
                multiples=rounding.ranks,
                curves=study.curves,
                groups=groups,
            )

        chosen = {name: _first_reached(steps, partial(setting_with, name)) for name in typed.layers}
        plan = plan_on(study, chosen, groups=groups, dropped=typed.dropped, select="manual")
        return with_multiples(plan, multiple_of, steps[0], steps[0])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a plan that ``save`` wrote, and that a person may have edited.

        Args:
            path: of the JSON file.

        Returns:
            The plan. Where settings were edited, its ``select`` is "manual", and ``damage``, ``score_loss``,
            ``gap``, ``budgets``, ``latency`` and ``activations``, which belonged to the old ones, are empty.

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
        write_plan(path, _plan_fields(self), self.after)

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

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """Group -> units that stay in the last step, ascending; groups that stay whole are not in it."""
        return self.steps[-1].groups if self.steps else {}

    @property
    def dropped(self) -> tuple[str, ...]:
        """Blocks that the last step replaces by the identity, in execution order."""
        return self.steps[-1].dropped if self.steps else ()

    def up_to(self, count: int) -> "Plan":
        """The first steps alone.

        Args:
            count: how many, at least 1.

        Returns:
            This plan where it has no more; else one without ``damage``, ``score_loss``, ``gap`` and
            ``budgets``, which belong to the last step.

        Raises:
            OptionError: no whole number of at least 1.
        """
        number = whole_number(count)
        if number is None or number < 1:
            raise OptionError(f"count={count!r}; give a whole number of at least 1")
        if number >= len(self.steps):
            return self
        return changed(
            self,
            steps=self.steps[:number],
            damage=None,
            score_loss=None,
            gap=None,
            budgets={},
            asked={},
            multiple_of=1,
            relaxed=None,
            latency=None,
            fixed={},
            activations=None,
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
        """This plan with another setting for one layer, group or block.

        Args:
            layer: dotted name; or the name of a group.
            setting: as in ``manual``, or None to leave alone all that has the name. Where no form is given,
                the one in this plan is kept if the method stays, else the cheaper one is taken. A plan knows
                no order of channels, so a group takes ``{"channels_kept": ...}``. What is inside a block
                that is dropped leaves the plan. Ranks round up to the plan's multiples if they were given;
                where "auto" chose them, what you say is taken as it stands.

        Returns:
            A new plan; its ``select`` is "manual", and ``damage``, ``score_loss``, ``gap``, ``budgets`` and
            ``latency`` and ``activations`` are empty.

        Raises:
            UnknownNameError: no such layer, group, block, method or form.
            OptionError: a setting of the wrong kind, a method that does not apply to the layer, or a width
                that does not name the units that stay.
            RankError: a rank or ratio that the layer cannot take, or that makes it cost more MACs than
                before; or a rank of this plan that the layer, slimmed anew, cannot take.
            PlanError: the plan has no step, or drops the block that the layer is in.
        """
        if not self.steps:
            raise PlanError(
                "plan: it has no step, so no layer to set; make one with study.plan or Plan.manual"
            )
        step = _step_without(self.steps[-1], layer) if setting is None else self._step_with(layer, setting)
        edited = changed(
            self,
            steps=(*self.steps[:-1], step),
            select="manual",
            damage=None,
            score_loss=None,
            gap=None,
            budgets={},
            asked={},
            latency=None,
            fixed={},
            activations=None,
        )
        return edited if self.relaxed is None else self._relaxed_as(edited)

    def _step_with(self, layer: str, setting: SettingLike) -> Step:
        """The last step with another setting for one name."""
        step = self.steps[-1]
        # There is no study that says which methods were measured.
        typed = settings_by_kind(step.structure, {layer: setting}, methods=ALL_METHODS)
        return _changed_step(step, typed, ALL_METHODS, self._own_multiples, has_bias=self.has_bias)

    @property
    def _own_multiples(self) -> Multiples:
        """What ranks that a person sets are rounded up to: those of "auto" were chosen for other settings."""
        return self.multiple_of if self.relaxed is None else 1

    def _relaxed_as(self, edited: "Plan") -> "Plan":
        """An edited plan that tells which of its ranks and widths keep to the multiples of this one."""
        chosen = Rounding(ranks=self.multiple_of, widths=self.multiple_of)
        used, relaxed = used_multiples(
            chosen, chosen, edited.steps[-1].structure, edited.settings, edited.groups
        )
        unchanged = [
            name
            for name in self.relaxed or ()
            if (edited.settings.get(name), edited.groups.get(name))
            == (self.settings.get(name), self.groups.get(name))
        ]
        names = (name for name in names_of(edited.steps[-1].structure) if name in {*relaxed, *unchanged})
        return changed(edited, multiple_of=used, relaxed=tuple(names))

    def summary(self) -> str:
        """The plan as a table: what is done to each layer, group and block, and what the model then costs."""
        return cast(str, _report().render_plan(self))

    def diff(self, other: "Plan") -> str:
        """What another plan does differently, as a table.

        Args:
            other: the plan to compare with.

        Returns:
            Lines of text: layer, group or block, this plan, the other one; then the keep ratios of both, and
            what both predict.

        Raises:
            OptionError: no plan.
        """
        rows = [(row.name, row.this, row.other) for row in differences(self, other)]
        if not rows:
            return "no difference: both plans give every layer the same setting"
        costs = [(plan.before, plan.after) for plan in (self, other)]
        for metric in METRICS:
            this, that = (f"{ratio_of(before, after, metric):.4f}" for before, after in costs)
            rows.append((metric, this, that))
        if self.damage is not None and other.damage is not None:
            rows.append(("damage", f"{self.damage:#.3g}", f"{other.damage:#.3g}"))
        if self.latency is not None and other.latency is not None:
            rows.append(("latency", f"{self.latency.predicted:.4f}", f"{other.latency.predicted:.4f}"))
        if self.activations is not None and other.activations is not None:
            peaks = self.activations.keep_ratio, other.activations.keep_ratio
            rows.append(("activation_bytes", f"{peaks[0]:.4f}", f"{peaks[1]:.4f}"))
        table = [("layer", "this", "other"), *rows]
        widths = [max(len(row[column]) for row in table) for column in (0, 1)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}   {c}" for a, b, c in table)

    def _repr_html_(self) -> str:
        return cast(str, _report().plan_notebook(self))

    def __repr__(self) -> str:
        structure = self.steps[-1].structure if self.steps else None
        layers = structure.layers if structure else {}
        groups = slimmable_groups(structure.channels) if structure else {}
        counts = [f"{len(self.settings)} of {len(layers)} layers"]
        if groups:
            counts.append(f"{len(self.groups)} of {len(groups)} groups")
        if structure and self.dropped:
            counts.append(f"{len(self.dropped)} of {len(structure.channels.blocks)} blocks dropped")
        after = self.after
        ratios = [f"{metric} {ratio_of(self.before, after, metric):.4f}" for metric in METRICS]
        steps = f"step {len(self.steps)}, " if len(self.steps) > 1 else ""
        if self.latency is not None:
            ratios.append(f"latency {self.latency.predicted:.4f}")
        if self.activations is not None:
            ratios.append(f"activation_bytes {self.activations.keep_ratio:.4f}")
        return f"Plan({steps}{self.select}: {', '.join([*counts, *ratios])})"


def differences(plan: Plan, other: object, *, with_same: bool = False) -> list[Difference]:
    """What another plan does differently.

    Args:
        plan: the first.
        other: the second.
        with_same: also what both do alike.

    Returns:
        Layers, then groups, then blocks; empty where both do the same.

    Raises:
        OptionError: the other is no plan.
    """
    if not isinstance(other, Plan):
        raise OptionError(f"other is a {type(other).__name__}; give a Plan, e.g. Plan.load(path)")
    return plan_difference(plan.steps, other.steps, (plan.has_bias, other.has_bias), with_same=with_same)


def edited_plan(
    source: PlanSource, plan: Plan, settings: Mapping[str, SettingLike] | str | os.PathLike[str]
) -> Plan:
    """A plan with other settings for some names, and what it then predicts.

    Args:
        source: a study, or anything else with structure, costs and curves.
        plan: for it; all that is not named stays.
        settings: as in ``Plan.manual``; None leaves alone all that has the name.

    Returns:
        A new plan; its ``select`` is "manual".

    Raises:
        SlimrankError: as in ``Plan.manual``, or for a plan without steps.
    """
    settings = _read(settings)
    if not plan.steps:
        raise PlanError("plan: it has no step, so no layer to set; make one with study.plan or Plan.manual")
    typed = settings_by_kind(source.structure, settings, methods=source.methods)
    step = changed(plan.steps[-1], structure=source.structure)
    for name, setting in settings.items():
        if setting is None:
            step = _step_without(step, name)
    step = _changed_step(
        step,
        typed,
        source.methods,
        plan._own_multiples,
        has_bias=plan.has_bias,
        curves=source.curves,
        group_curves=source.group_curves if typed.groups else (),
    )
    made = plan_on(source, step.settings, groups=step.groups, dropped=step.dropped, select="manual")
    if plan.relaxed is None:
        return changed(made, multiple_of=plan.multiple_of)
    return plan._relaxed_as(made)


def _changed_step(
    step: Step,
    typed: SettingsByKind,
    methods: Sequence[str],
    multiples: Multiples,
    *,
    has_bias: bool,
    curves: Sequence[Curve] = (),
    group_curves: Sequence[GroupCurve] | None = None,
) -> Step:
    """A step with other settings for some names; what a block that is now dropped holds leaves it.

    Args:
        step: to change.
        typed: what a person wrote.
        methods: that may be named.
        multiples: what ranks and widths are rounded up to.
        has_bias: of the plan.
        curves: damages of pairs; of forms that are not given, the one with the lowest is taken.
        group_curves: in whose order units go; None where there is no study.

    Returns:
        A new step.
    """
    structure, blocks = step.structure, tuple(typed.dropped)
    settings = {name: known for name, known in step.settings.items() if not is_inside(name, blocks)}
    dropped = (*(name for name in step.dropped if not is_inside(name, blocks)), *blocks)
    groups = {
        name: kept
        for name, kept in step.groups.items()
        if name not in typed.groups and not group_is_inside(structure.channels, name, blocks)
    }
    steps = (Rounding(ranks=multiples, widths=multiples),)
    groups |= _units_that_stay(structure, typed.groups, steps, group_curves)
    # After the groups: a pair replaces the slimmed layer, and its form is kept where none is given.
    for name, typed_setting in typed.layers.items():
        settings[name] = setting_for(
            structure,
            name,
            typed_setting,
            methods=methods,
            has_bias=has_bias,
            multiples=multiples,
            curves=curves,
            current=step.settings.get(name),
            groups=groups,
        )
    return step_of(structure, settings, groups, dropped)


def _read(settings: object) -> Mapping[str, SettingLike]:
    """Settings as a person gave them, or as a file holds them."""
    if isinstance(settings, str | os.PathLike):
        return read_settings(settings)
    if not isinstance(settings, Mapping):
        raise OptionError(
            f"settings is a {type(settings).__name__}; give layer -> setting, e.g. "
            '{"fc": ("weight_svd", 0.5)}, or the path of a CSV or JSON file'
        )
    return settings


def _report() -> ModuleType:
    """The room that makes texts: it reads plans, so it stands above and is looked up when it is asked."""
    return import_module("slimrank.report")


def plan_content(plan: Plan) -> dict[str, Json]:
    """What the file of a plan holds, for a file that holds several."""
    return plan_to_json(_plan_fields(plan), plan.after)


def plan_of_content(content: Json, where: str) -> Plan:
    """The plan that ``plan_content`` gave, and that a person may have edited, as in ``Plan.load``.

    Args:
        content: read from a file.
        where: for errors.

    Returns:
        The plan.

    Raises:
        PlanError: it is no plan, holds unknown keys, layers or settings, or is of another format.
        RankError: a rank that the layer does not have.
    """
    return Plan(**plan_from_json(content, where))


def _plan_fields(plan: Plan) -> PlanFields:
    # mypy does not follow a dictionary that a comprehension builds into the TypedDict.
    return cast(PlanFields, {known.name: getattr(plan, known.name) for known in fields(plan)})


def plan_on(
    source: PlanSource,
    settings: Mapping[str, Setting],
    *,
    select: str,
    groups: Mapping[str, Sequence[int]] | None = None,
    dropped: Sequence[str] = (),
    budgets: Mapping[Metric, float] | None = None,
    asked: Mapping[Metric, str] | None = None,
    gap: float | None = None,
) -> Plan:
    """A plan whose last step gives these settings to the model of a source.

    Args:
        source: a study, or anything else with structure, costs and curves.
        settings: layer -> setting.
        select: how they were chosen.
        groups: group -> units that stay, ascending.
        dropped: blocks to replace by the identity.
        budgets: keep ratios of the original model that were asked for.
        asked: what was asked for, where that was no plain ratio.
        gap: of the choice, where it is certified.

    Returns:
        The plan, after the steps of the source's earlier plan; its damage is None where the source's curves
        hold none for a rank, for the units that a group keeps, or for a block.

    Raises:
        PlanError: no such group or block, units that the group does not have, or something inside a dropped
            block.
        RankError: a rank that the slimmed layer does not have, or at which the pair costs as much as it.
    """
    step = step_of(source.structure, settings, groups, dropped)
    damages = [damage_at(source.curves, name, setting) for name, setting in settings.items()]
    damages += [group_damage_at(source.group_curves, name, kept) for name, kept in step.groups.items()]
    damages += [block_damage_at(source.block_damages, name) for name in step.dropped]
    # Rounding may leave a damage just below zero.
    known = [max(damage, 0.0) for damage in damages if damage is not None]
    earlier = source.previous
    return Plan(
        steps=(*(earlier.steps if earlier else ()), step),
        before=earlier.before if earlier else source.before,
        has_bias=source.has_bias,
        select=select,
        damage=float(sum(known)) if len(known) == len(damages) else None,
        gap=gap,
        budgets=budgets or {},
        asked=asked or {},
    )


def with_multiples(plan: Plan, multiple_of: MultipleOf, rounding: Rounding, rule: Rounding) -> Plan:
    """A plan that tells what its ranks and widths are multiples of.

    Args:
        plan: to tell it.
        multiple_of: as the caller gave it.
        rounding: that the plan was made with.
        rule: what "auto" would take; the same where it was lowered for nothing.

    Returns:
        A new plan.
    """
    if not has_auto(multiple_of):
        return changed(plan, multiple_of=rounding.ranks)
    used, relaxed = used_multiples(rounding, rule, plan.steps[-1].structure, plan.settings, plan.groups)
    return changed(plan, multiple_of=used, relaxed=relaxed)


def _units_that_stay(
    structure: Structure,
    typed: Mapping[str, object],
    steps: Sequence[Rounding],
    curves: Sequence[GroupCurve] | None,
) -> dict[str, tuple[int, ...]]:
    """Group -> units that stay, from what a person wrote for it; groups that stay whole are not in it."""
    groups = structure.channels.groups

    def units_with(name: str, rounding: Rounding) -> tuple[int, ...] | None:
        return units_for(groups[name], typed[name], multiples=rounding.widths, curves=curves)

    units = {name: _first_reached(steps, partial(units_with, name)) for name in typed}
    return {name: kept for name, kept in units.items() if kept is not None}


def _first_reached(steps: Sequence[Rounding], made_with: Callable[[Rounding], _Made]) -> _Made:
    """What is made with the first rounding that the layer or group can take."""
    for rounding in steps[:-1]:
        try:
            return made_with(rounding)
        except RankError:
            # Lower numbers may do; if none does, the last one says what is wrong with what was typed.
            continue
    return made_with(steps[-1])


def _step_without(step: Step, name: str) -> Step:
    """A step that leaves alone all that has this name."""
    check_known(step.structure, name)
    called = {group.name for group in groups_called(step.structure, name)}
    return step_of(
        step.structure,
        {layer: setting for layer, setting in step.settings.items() if layer != name},
        {group: kept for group, kept in step.groups.items() if group not in called},
        [block for block in step.dropped if block != name],
    )


def chosen_on(source: PlanSource, chosen: Plan) -> Plan:
    """The same choice on another source: what was asked for and promised stays, its damage is that source's.

    Args:
        source: with the model that the plan was chosen for, and damages of its own.
        chosen: a plan by other damages.

    Returns:
        The plan, as ``plan_on`` makes its last step.
    """
    plan = plan_on(
        source, chosen.settings, groups=chosen.groups, dropped=chosen.dropped, select=chosen.select
    )
    return changed(chosen, steps=plan.steps, before=plan.before, has_bias=plan.has_bias, damage=plan.damage)
