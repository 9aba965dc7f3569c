# SPDX-License-Identifier: Apache-2.0
"""A plan that is edited step by step: everything that the page shows is computed here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from slimrank._errors import OptionError, PlanError, SlimrankError
from slimrank._names import nearest
from slimrank._numbers import whole_number
from slimrank._study import Study
from slimrank.cost import forms_of, layer_cost, max_rank, pair_costs, pair_has_bias, slimmed_spec
from slimrank.live._beside import Building, OpenFile, Shelf, new_file
from slimrank.plan import (
    Fixed,
    LatencyTable,
    Plan,
    SettingLike,
    check_table,
    differences,
    group_damage_at,
    has_stacks,
    has_uniform_widths,
    is_inside,
    planned_latency,
    slimmable_groups,
)
from slimrank.records import METRICS, PRUNING, Form, LayerSpec, Method, Setting, replaces_groups

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Kind = Literal["layer", "group", "block"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_SELECTS: Mapping[str, Literal["optimal", "greedy", "uniform"]] = {
    "optimal": "optimal",
    "greedy": "greedy",
    "uniform": "uniform",
}


# What may be done to a row of the page.
_OF_ROWS = ("pair", "width", "block", "lock")
# What the plan is compared with where that is itself, before it was edited.
AS_OPENED = "as it was opened"


class StaleError(OptionError):
    """A change to a plan that has become another one meanwhile."""


class Lock(NamedTuple):
    """One row that stays as it is when the rest is planned again."""

    kind: Kind
    name: str


class Editor:
    """A plan of a study, with locks and with all that was done to it."""

    def __init__(
        self,
        study: Study,
        plan: Plan,
        path: Path,
        *,
        latencies: LatencyTable | None = None,
        run_dir: Path | None = None,
    ) -> None:
        """Begin.

        Args:
            study: that the plan is of; with its model, plans can be applied.
            plan: to edit; it is not changed.
            path: of its file. New plans are written beside it.
            latencies: a table of times of this network, to predict the time of each plan; None for none.
            run_dir: of the study: plans there can be compared, too; None for none.

        Raises:
            PlanError: the plan belongs to another model, or has no step.
            LatencyError: a table of another network.
        """
        self._study, self._path = study, path
        self._table = None if latencies is None else check_table(latencies, study.structure)
        self._shelf = Shelf([path.parent, *([] if run_dir is None else [run_dir])])
        self._compared: tuple[str, Plan] | None = None
        self._building = Building(study)
        self._version = 0
        self._asked = plan
        self._plan = plan
        kinds: dict[Kind, str] = {"layer": "layers", "group": "groups", "block": "blocks"}
        self._locks = frozenset(
            Lock(kind, name) for kind, plural in kinds.items() for name in plan.fixed.get(plural, ())
        )
        self._past: list[tuple[Plan, frozenset[Lock]]] = []
        self._saved: Path | None = None
        self._saved_plan: Plan | None = None
        # From here on a change of the file is told, so before what takes long.
        self._open_file = OpenFile(path)
        try:
            # An edit of nothing checks that the plan is of this study, and predicts its damage.
            study.edit(plan, {})
        except BaseException:
            self._open_file.close()
            raise

    @property
    def plan(self) -> Plan:
        """As it is now."""
        return self._plan

    @property
    def version(self) -> int:
        """Another one after each change."""
        return self._version

    def set_pair(self, name: str, method: str | None, rank: int | None) -> None:
        """Give a layer a pair, or none; its channels stay as they are.

        Args:
            name: of the layer.
            method: None for no pair.
            rank: of the pair.

        Raises:
            SlimrankError: as in ``Study.edit``.
        """
        self._check(Lock("layer", name))
        if method is not None:
            if rank is None:
                raise OptionError(f"layer {name!r}: no rank is given; give a whole number of at least 1")
            self._become(self._study.edit(self._plan, {name: (method, {"rank": rank})}))
            return
        # None takes the channels of that name back as well: they are set again.
        alone = self._study.edit(self._plan, {name: None})
        again: dict[str, SettingLike] = {
            group: (PRUNING, {"channels_kept": list(kept)})
            for group, kept in self._plan.groups.items()
            if group not in alone.groups
        }
        self._become(self._study.edit(alone, again) if again else alone)

    def set_width(self, name: str, keep: int) -> None:
        """Let a group keep so many units.

        Raises:
            SlimrankError: as in ``Study.edit``.
        """
        self._check(Lock("group", name))
        self._become(self._study.edit(self._plan, {name: (PRUNING, {"keep": keep})}))

    def set_dropped(self, name: str, *, is_dropped: bool) -> None:
        """Take a block out, or back in.

        Raises:
            SlimrankError: as in ``Study.edit``.
        """
        self._check(Lock("block", name))
        self._become(self._study.edit(self._plan, {name: "drop" if is_dropped else None}))

    def set_lock(self, kind: str, name: str, *, is_locked: bool) -> None:
        """Hold a row when the rest is planned again, or let it go.

        Raises:
            OptionError: no such row.
        """
        lock = Lock(_kind_of(kind), name)
        self._check(lock)
        self._past.append((self._plan, self._locks))
        self._version += 1
        self._locks = self._locks | {lock} if is_locked else self._locks - {lock}

    def replan(self) -> None:
        """Choose all that is not locked again, under the budgets that the plan was made for.

        Raises:
            PlanError: the plan was not chosen under budgets on counted costs.
            BudgetError: the budgets are out of reach with what is locked.
        """
        asked = self._asked
        if asked.score_loss is not None:
            raise PlanError(
                "plan: it was chosen by scores, which this page does not have; use slimrank plan with "
                "--scores, and --fix for what is locked"
            )
        if asked.activations is not None:
            raise PlanError(
                "plan: it was chosen for a peak of activations, which needs the model; use slimrank plan "
                "with --activation-bytes and --model, and --fix for what is locked"
            )
        if asked.latency is not None and self._table is None:
            raise PlanError(
                "plan: it was chosen by measured times, which this page does not have; start slimrank edit "
                "with --latencies, the table that the plan was made with"
            )
        if not asked.budgets and asked.latency is None:
            raise PlanError(
                "plan: it has no budgets, so there is nothing to plan the rest for; edit one that slimrank "
                "plan chose, e.g. with --macs 0.5"
            )
        budgets = asked.budgets
        latency = None if asked.latency is None else asked.latency.asked
        widths = has_uniform_widths(asked.groups, self._study.structure.channels)
        made = self._study.plan(
            macs=budgets.get("macs"),
            params=budgets.get("params"),
            bytes=budgets.get("bytes"),
            latency=latency,
            latencies=None if latency is None else self._table,
            select=_SELECTS.get(asked.select, "optimal"),
            multiple_of=asked.multiple_of if asked.relaxed is None else "auto",
            relative_to="model" if latency is not None or len(asked.steps) < 2 else "original",
            fixed=self._fixed(),
            # Of a plan that slims several layers alike, not of one in which that is chance.
            uniform_widths=widths
            and not asked.dropped
            and has_stacks(asked.groups, self._study.structure.channels),
            new_bias=asked.has_bias or not self._study.has_bias,
        )
        self._become(made)

    def undo(self) -> None:
        """Take the last change back.

        Raises:
            OptionError: there is none.
        """
        if not self._past:
            raise OptionError("there is nothing to undo; this is the plan as it was opened")
        self._plan, self._locks = self._past.pop()
        self._version += 1

    def save(self) -> Path:
        """Write the plan to a new file beside the one that was opened.

        Returns:
            Its path; no file is ever replaced.

        Raises:
            FileError: it cannot be written.
        """
        path = new_file(self._path, "edited")
        try:
            self._plan.save(path)
        except SlimrankError:
            path.unlink(missing_ok=True)
            raise
        self._saved, self._saved_plan = path, self._plan
        return path

    def compare(self, name: str | None) -> None:
        """Show another plan beside this one.

        Args:
            name: one of those that ``facts`` lists; None for none.

        Raises:
            OptionError: it is not among them.
            FileError: the file cannot be read.
            PlanError: it is no plan, or one of another model.
        """
        if name is None:
            self._compared = None
        elif name == AS_OPENED:
            self._compared = (name, self._asked)
        else:
            other = Plan.load(self._shelf.path_of(name))
            self._study.edit(other, {})
            self._compared = (name, other)

    def build(self) -> None:
        """Apply the plan, in a thread of its own; it is saved first, and the model then beside it.

        Raises:
            StudyError: the study has no model.
            OptionError: a model is being built already.
            FileError: the plan cannot be written.
        """
        self._building.check()
        if self._saved is None or self._saved_plan != self._plan:
            self.save()
        if self._saved is not None:
            self._building.start(self._plan, self._saved)

    def close(self) -> None:
        """Let the file go."""
        self._open_file.close()

    def totals_after(self, change: Callable[[], None]) -> dict[str, Value]:
        """What a change would come to; it is not made.

        Raises:
            SlimrankError: it cannot be made.
        """
        before = self._plan, self._locks, list(self._past), self._version
        try:
            change()
            return self._totals()
        finally:
            self._plan, self._locks, self._past, self._version = before

    def _totals(self) -> dict[str, Value]:
        """What the whole model costs and is predicted to lose."""
        plan, after = self._plan, self._plan.after
        return {
            "totals": {
                metric: {
                    "before": plan.before.metric(metric),
                    "after": after.metric(metric),
                    "ratio": plan.keep_ratio(metric),
                }
                for metric in METRICS
            },
            "damage": self._damage(),
            "latency": self._latency_of(plan),
        }

    def facts(self) -> dict[str, Value]:
        """All that the page shows."""
        plan = self._plan
        structure = self._study.structure
        budgets: dict[str, Value] = {metric: ratio for metric, ratio in self._asked.budgets.items()}
        blocks = sorted({*structure.channels.blocks} & self._droppable)
        return {
            **self._totals(),
            "unit": self._study.unit,
            "budgets": budgets,
            "select": plan.select,
            "layers": [
                self._layer_facts(spec)
                for spec in structure.layers.values()
                if self._methods_of(spec) and not is_inside(spec.name, plan.dropped)
            ],
            "groups": [self._group_facts(name) for name in self._open_groups],
            "blocks": [
                {
                    "name": name,
                    "dropped": name in plan.dropped,
                    "locked": Lock("block", name) in self._locks,
                }
                for name in blocks
            ],
            "undo": len(self._past),
            "saved": None if self._saved is None else self._saved.name,
            "version": self._version,
            "notices": list(self._open_file.notices()),
            "plans": [AS_OPENED, *(name for name in self._shelf.names() if name != self._path.name)],
            "compared": self._comparison(),
            "building": {**self._building.facts()},
        }

    def _latency_of(self, plan: Plan) -> dict[str, Value] | None:
        """Predicted time of a plan; None without a table."""
        if self._table is None:
            return None
        asked = None if self._asked.latency is None else self._asked.latency.asked
        found = planned_latency(self._table, plan.steps[-1], 1.0 if asked is None else asked)
        return {
            "ratio": found.predicted,
            "ms": found.predicted * found.before_ms,
            "before_ms": found.before_ms,
            "backend": found.backend,
            "budget": asked,
        }

    def _comparison(self) -> dict[str, Value] | None:
        """The other plan beside this one."""
        if self._compared is None:
            return None
        name, other = self._compared
        damage = other.damage if other.damage is not None else self._study.edit(other, {}).damage
        return {
            "name": name,
            "ratios": {metric: other.keep_ratio(metric) for metric in METRICS},
            "damage": damage,
            "latency": self._latency_of(other),
            "rows": [
                {"kind": row.kind, "name": row.name, "this": row.this, "other": row.other}
                for row in differences(self._plan, other, with_same=True)
            ],
        }

    @property
    def _droppable(self) -> set[str]:
        return {each.block for each in self._study.block_damages}

    @property
    def _open_groups(self) -> list[str]:
        known = {curve.group for curve in self._study.group_curves}
        return [name for name in slimmable_groups(self._study.structure.channels) if name in known]

    def _damage(self) -> float | None:
        """Predicted for the plan as it is; a plan that was loaded after an edit by hand has none itself."""
        return self._plan.damage if self._plan.damage is not None else self._study.edit(self._plan, {}).damage

    def _methods_of(self, spec: LayerSpec) -> list[Method]:
        return [
            method
            for method in spec.methods
            if method in self._study.methods and not replaces_groups(method) and forms_of(spec, method)
        ]

    def _layer_facts(self, spec: LayerSpec) -> dict[str, Value]:
        setting = self._plan.settings.get(spec.name)
        tops: dict[str, Value] = {}
        for method in self._methods_of(spec):
            forms = forms_of(spec, method)
            if setting is not None and setting.method == method:
                forms = (setting.form,)
            tops[method] = max((self._top(spec, form) for form in forms), key=lambda top: top[0])[0]
        top, why = (0, "") if setting is None else self._top(spec, setting.form)
        return {
            "name": spec.name,
            "kind": spec.class_name,
            "methods": list(tops),
            "tops": tops,
            "method": None if setting is None else setting.method,
            "form": None if setting is None else setting.form,
            "rank": None if setting is None else setting.rank,
            "top": top,
            "why": why,
            "locked": Lock("layer", spec.name) in self._locks,
        }

    def _top(self, spec: LayerSpec, form: Form) -> tuple[int, str]:
        """The highest rank of a form that the layer takes as it is slimmed now, and why no higher one."""
        slimmed = slimmed_spec(spec, self._study.structure.channels, self._plan.groups)
        full = max_rank(slimmed, form)
        ranks = np.arange(1, full + 1)
        has_bias = pair_has_bias(slimmed, plan_has_bias=self._plan.has_bias)
        macs, _ = pair_costs(slimmed, form, ranks, has_bias=has_bias)
        # As a setting typed by hand: a slimmed layer takes no pair that costs the same.
        most = layer_cost(slimmed).macs - (slimmed is not spec)
        top = int((macs <= most).sum())
        if top < full:
            return top, f"above rank {top} the pair costs more MACs than the layer"
        return full, f"rank {full} is the full rank of the layer"

    def _group_facts(self, name: str) -> dict[str, Value]:
        group = self._study.structure.channels.groups[name]
        kept = self._plan.groups.get(name)
        damage = None if kept is None else group_damage_at(self._study.group_curves, name, kept)
        return {
            "name": name,
            "producers": list(group.producers),
            "consumers": list(group.consumers),
            "units": group.units,
            "keep": group.units if kept is None else len(kept),
            "damage": damage,
            "why": f"the group has {group.units} units, and at least one stays",
            "locked": Lock("group", name) in self._locks,
        }

    def _check(self, lock: Lock) -> None:
        """Refuses a row that is not shown."""
        names: dict[Kind, list[str]] = {
            "layer": list(self._study.structure.layers),
            "group": self._open_groups,
            "block": sorted(self._droppable),
        }
        if lock.name not in names[lock.kind]:
            raise OptionError(
                f"{lock.kind} {lock.name!r}: there is none; {nearest(lock.name, names[lock.kind])}"
            )

    def _become(self, plan: Plan) -> None:
        self._past.append((self._plan, self._locks))
        self._plan = plan
        self._version += 1

    def _fixed(self) -> Fixed:
        """What is locked, as it is now."""
        plan = self._plan
        layers = [lock.name for lock in self._locks if lock.kind == "layer"]
        groups = [lock.name for lock in self._locks if lock.kind == "group"]
        blocks = [lock.name for lock in self._locks if lock.kind == "block"]
        settings: dict[str, Setting] = {name: plan.settings[name] for name in layers if name in plan.settings}
        return Fixed(
            settings=settings,
            groups={name: plan.groups[name] for name in groups if name in plan.groups},
            dropped=tuple(name for name in plan.dropped if name in blocks),
            untouched=frozenset(
                name for name in layers if name not in settings and not is_inside(name, plan.dropped)
            ),
            whole=frozenset(name for name in groups if name not in plan.groups),
            standing=frozenset(name for name in blocks if name not in plan.dropped),
        )


def _kind_of(text: str) -> Kind:
    kind = next((known for known in _KINDS if known == text), None)
    if kind is None:
        raise OptionError(f"kind {text!r}: there is none; {nearest(text, _KINDS)}")
    return kind


def do(editor: Editor, request: object) -> dict[str, Value]:
    """Do what a page asks for.

    Args:
        editor: of the plan.
        request: from JSON: an object with "action" and what that needs.

    Returns:
        What the page then shows.

    Raises:
        SlimrankError: it cannot be done; nothing has changed.
    """
    if not isinstance(request, dict) or not isinstance(request.get("action"), str):
        raise OptionError('the request is no object with an "action"')
    if request.get("version", editor.version) != editor.version:
        raise StaleError("the plan was changed in another window; this is how it is now, so do it again")
    action, name = request["action"], request.get("name")
    whole = {"replan": editor.replan, "undo": editor.undo, "save": editor.save, "build": editor.build}
    if action in whole:
        whole[action]()
    elif action == "compare":
        if name is not None and not isinstance(name, str):
            raise OptionError(f"action 'compare': {name!r} is no name of a plan")
        editor.compare(name)
    elif action not in _OF_ROWS:
        raise OptionError(
            f"action {action!r}: there is none; {nearest(action, (*_OF_ROWS, 'compare', *whole))}"
        )
    elif not isinstance(name, str):
        raise OptionError(f"action {action!r}: give the name of a row")
    elif request.get("preview") is True:
        return editor.totals_after(lambda: _change_row(editor, action, name, request))
    else:
        _change_row(editor, action, name, request)
    return editor.facts()


def _change_row(editor: Editor, action: str, name: str, request: Mapping[str, object]) -> None:
    """Does one of the actions that are about a row."""
    if action == "pair":
        method = request.get("method")
        if method is not None and not isinstance(method, str):
            raise OptionError(f"layer {name!r}: method {method!r} is no text")
        editor.set_pair(name, method, whole_number(request.get("rank")))
    elif action == "width":
        keep = whole_number(request.get("keep"))
        if keep is None:
            raise OptionError(f"group {name!r}: keep {request.get('keep')!r} is no whole number")
        editor.set_width(name, keep)
    elif action == "block":
        editor.set_dropped(name, is_dropped=request.get("dropped") is True)
    else:
        editor.set_lock(str(request.get("kind")), name, is_locked=request.get("locked") is True)
