# SPDX-License-Identifier: Apache-2.0
"""One layer: what was found of it, what a plan does to it, and what other choices would cost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from slimrank._errors import PlanError, RankError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank.cost import layer_cost, setting_cost, slimmed_spec
from slimrank.files import Json
from slimrank.plan import (
    Plan,
    PlanSource,
    Step,
    block_damage_at,
    cost_after,
    damage_at,
    group_damage_at,
    is_inside,
    multiple_for,
    step_of,
)
from slimrank.records import PRUNING, Curve, GroupCurve, GroupSpec, LayerSpec, Metric, Setting, ratio_of
from slimrank.report._facts import setting_facts
from slimrank.report._groups import readers_of
from slimrank.report._numbers import format_count, format_damage, format_percent
from slimrank.report._table import joined_parts, render_table, wrapped
from slimrank.report._words import counted, name_text, setting_text, shape_text, slimmed_text, why_not

# Shares of a layer's MACs, and of a group's units, that are shown where nothing was chosen.
_SHARES = (0.75, 0.5, 0.25)
# Names of layers that a sentence writes out.
_NAMES_SHOWN = 3
_MEGA = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Something that a plan may do.

    Attributes:
        kind: "pair", "group" or "block".
        name: of the layer, group or block.
        text: what is done, for people.
        layer_ratio: share of the layer's MACs that is left, with all else as in the plan; None where it has
            none.
        model_ratio: share of the model's MACs that is left, with all else as in the plan.
        damage: predicted for this choice alone; None where nothing was measured.
        is_chosen: it is what the plan does.
    """

    kind: str
    name: str
    text: str
    layer_ratio: float | None
    model_ratio: float
    damage: float | None
    is_chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of one layer.

    Attributes:
        text: a paragraph, and a table of choices.
        facts: the same for ``--json``.
    """

    text: str
    facts: Mapping[str, Json]


def explain_layer(
    source: PlanSource, layer: str, plan: Plan | None, *, unit: str, width: int | None = 110
) -> Explanation:
    """What was found of a layer, what a plan does to it and why, and what other choices would cost.

    Args:
        source: the study.
        layer: dotted name.
        plan: of this study; None for what could be done.
        unit: of damage.
        width: columns at which paragraphs wrap, None for nowhere; the table takes what it needs (about 90).

    Returns:
        The explanation.

    Raises:
        UnknownNameError: no such layer.
    """
    structure = source.structure
    if layer not in structure.layers:
        raise UnknownNameError(f"layer {layer!r}: the model has none; {nearest(layer, structure.layers)}")
    spec = structure.layers[layer]
    choices = list(_choices(source, spec, plan))
    found = [_geometry_text(source, spec), *_group_texts(source, spec), *_block_texts(source, spec)]
    done = [] if plan is None else _plan_texts(source, spec, plan, unit, choices)
    paragraphs = [wrapped(" ".join(sentences), width) for sentences in (found, done) if sentences]
    return Explanation(
        text=joined_parts([*paragraphs, _choice_table(choices, unit)]),
        facts=_facts(source, spec, plan, unit, choices, [*found, *done]),
    )


# --- what was found ---


def _geometry_text(source: PlanSource, spec: LayerSpec) -> str:
    calls = {0: "never called", 1: "called once"}.get(len(spec.calls), f"called {len(spec.calls)} times")
    methods = f"{_all_of(spec.methods)} {'applies' if len(spec.methods) == 1 else 'apply'}"
    applies = f"{methods}." if spec.methods else f"No method applies: {why_not(spec)}."
    article = "an" if spec.class_name.startswith(("A", "E", "I", "O", "U")) else "a"
    macs, params = source.before.macs, source.before.params
    return (
        f"{name_text(spec.name)} is {article} {spec.class_name} with a weight of "
        f"{shape_text(spec.weight_shape)}{' and a bias' if spec.has_bias else ''}, {calls}. It has "
        f"{format_count(spec.macs)} MACs ({format_percent(spec.macs, macs)} of the model) and "
        f"{format_count(spec.params)} parameters ({format_percent(spec.params, params)}). {applies}"
    )


def _group_texts(source: PlanSource, spec: LayerSpec) -> Iterator[str]:
    channels = source.structure.channels
    for group in _made_by(source, spec):
        others = [name for name in group.producers if name != spec.name]
        tied = f", with {listed(others, _NAMES_SHOWN)}: a unit goes for all of them at once" if others else ""
        if group.reason is not None:
            yield f"Of its outputs, those of group {group.name!r} stay whole: {group.reason}."
            continue
        readers = readers_of(channels, group)
        verb = "reads" if len(readers) == 1 else "read"
        read = f"{listed(readers, _NAMES_SHOWN)} {verb} them" if readers else "no layer reads them"
        width = f" of {group.unit_width} outputs each" if group.unit_width > 1 else ""
        yield (f"It makes the {counted(group.units, 'unit')}{width} of group {group.name!r}{tied}; {read}.")
    read_groups = [
        group.name for group in channels.groups.values() if spec.name in readers_of(channels, group)
    ]
    if read_groups:
        yield f"It reads the channels of {_words('group', read_groups)}."


def _block_texts(source: PlanSource, spec: LayerSpec) -> Iterator[str]:
    for name in _blocks_around(source, spec):
        block = source.structure.channels.blocks[name]
        damage = block_damage_at(source.block_damages, name)
        known = "" if damage is None else f", damage {format_damage(damage)}"
        yield f"It is in block {name!r}, which can be dropped whole ({format_count(block.macs)} MACs{known})."


def _made_by(source: PlanSource, spec: LayerSpec) -> list[GroupSpec]:
    return [group for group in source.structure.channels.groups.values() if spec.name in group.producers]


def _blocks_around(source: PlanSource, spec: LayerSpec) -> list[str]:
    return [name for name in source.structure.channels.blocks if is_inside(spec.name, (name,))]


# --- what a plan does, and why ---


def _plan_texts(
    source: PlanSource, spec: LayerSpec, plan: Plan, unit: str, choices: Sequence[_Choice]
) -> list[str]:
    if not plan.steps:
        return ["The plan does nothing."]
    setting, step = plan.settings.get(spec.name), plan.steps[-1]
    slimmed = slimmed_text(step, spec)
    around = next((name for name in plan.dropped if is_inside(spec.name, (name,))), None)
    if around is not None:
        return [f"The plan drops block {around!r}, in which it is.", _rule_text(plan)]
    if setting is None and slimmed is None:
        return ["The plan leaves it alone.", *_why_alone(source, spec, plan, unit)]
    parts = [] if setting is None else [f"makes it a pair, {_pair_text(setting)}"]
    parts += [] if slimmed is None else [f"changes its channels, {slimmed}"]
    damages = [] if setting is None else [("the pair", damage_at(source.curves, spec.name, setting))]
    damages += [
        (f"group {group.name!r}", group_damage_at(source.group_curves, group.name, plan.groups[group.name]))
        for group in _made_by(source, spec)
        if group.name in plan.groups
    ]
    known = [
        f"{format_damage(damage)} for {what}{_share_text(damage, plan)}"
        for what, damage in damages
        if damage is not None
    ]
    told = [f"The plan {' and '.join(parts)}."]
    if known:
        told.append(f"Predicted damage in {unit}: {', '.join(known)}.")
    told.append(_rule_text(plan))
    if setting is not None:
        told += _price_texts(source, spec, setting, plan, unit)
    for group in _made_by(source, spec):
        told += _group_price_texts(source, group, choices, unit)
    return told


def _group_price_texts(
    source: PlanSource, group: GroupSpec, choices: Sequence[_Choice], unit: str
) -> Iterator[str]:
    """What the next smaller width of a slimmed group would cost."""
    widths = [choice for choice in choices if choice.kind == "group" and choice.name == group.name]
    here = next((choice for choice in widths if choice.is_chosen), None)
    if here is None or here.damage is None:
        return
    smaller = [choice for choice in widths if choice.model_ratio < here.model_ratio]
    lower = max(smaller, key=lambda choice: choice.model_ratio, default=None)
    if lower is None or lower.damage is None:
        yield f"Group {group.name!r} can keep no fewer units here."
        return
    saved = (here.model_ratio - lower.model_ratio) * source.before.macs
    yield (
        f"If group {group.name!r} {lower.text.removeprefix(PRUNING).strip()} units, that costs "
        f"{_price((lower.damage - here.damage) / saved)} {unit} for each million MACs saved."
    )


def _share_text(damage: float, plan: Plan) -> str:
    return f" ({format_percent(damage, plan.damage)} of the plan's)" if plan.damage else ""


def _asked_text(plan: Plan, metric: Metric) -> str:
    """One budget, as it was asked for."""
    return f"{metric}={plan.asked.get(metric) or f'{plan.budgets[metric]:.4g}'}"


def _rule_text(plan: Plan) -> str:
    """By what rule a plan was chosen."""
    wanted = ", ".join(_asked_text(plan, metric) for metric in plan.budgets)
    if plan.latency is not None:
        latency = f"latency={plan.latency.words or f'{plan.latency.asked:.4g}'}"
        wanted = ", ".join(text for text in (wanted, latency) if text)
    if plan.activations is not None:
        wanted = ", ".join(text for text in (wanted, plan.activations.text) if text)
    under = f" under {wanted}" if wanted else ""
    lost = "damage" if plan.score_loss is None else "loss of the score"
    rules = {
        "optimal": f"All settings together were chosen for the least predicted {lost}{under}.",
        "greedy": f"Every layer may lose the same{under}: the cheapest choice within that was taken.",
        "uniform": f"Every layer keeps the same share of its cost{under}.",
    }
    return rules.get(plan.select, "It was set by hand, or the plan was edited.")


def _why_alone(source: PlanSource, spec: LayerSpec, plan: Plan, unit: str) -> list[str]:
    """Why nothing is done to a layer, as far as numbers tell."""
    curves = [curve for curve in source.curves if curve.layer == spec.name and len(curve.ranks)]
    if not curves:
        return [] if spec.methods else [f"Nothing can be done: {why_not(spec)}."]
    told = [_rule_text(plan)]
    whole, multiple = layer_cost(spec).macs, multiple_for(plan.multiple_of, spec.name)
    prices = [
        damage / (whole - macs)
        for curve in curves
        for rank, macs, damage in _points(curve)
        if rank % multiple == 0 and macs < whole
    ]
    if not prices:
        return [*told, f"No rank that saves MACs is a multiple of {multiple}."]
    told.append(f"Its best pair would cost {_price(min(prices))} {unit} for each million MACs saved.")
    return [*told, *_elsewhere(source, spec, plan)]


def _price_texts(source: PlanSource, spec: LayerSpec, setting: Setting, plan: Plan, unit: str) -> list[str]:
    lower, price = _price_down(source, spec.name, setting, plan)
    if price is None:
        return ["No lower rank is a multiple that the plan may take."]
    return [
        f"Rank {lower} in its place would cost {_price(price)} {unit} for each million MACs saved.",
        *_elsewhere(source, spec, plan),
    ]


def _elsewhere(source: PlanSource, spec: LayerSpec, plan: Plan) -> list[str]:
    """What a step down costs in the other layers: a plan is balanced where all cost about the same."""
    prices = [
        price
        for name, setting in plan.settings.items()
        if name != spec.name and (price := _price_down(source, name, setting, plan)[1]) is not None
    ]
    if not prices:
        return []
    return [
        f"In the plan's other pairs a step down costs {_price(min(prices))} to {_price(max(prices))}, "
        f"{_price(median(prices))} in the middle."
    ]


def _price_down(
    source: PlanSource, name: str, setting: Setting, plan: Plan
) -> tuple[int, float] | tuple[None, None]:
    """The next lower rank, and its damage for each MAC that it saves; None where there is none."""
    curve = _curve_of(source, name, setting)
    points = {} if curve is None else {rank: (macs, damage) for rank, macs, damage in _points(curve)}
    lower, _ = _next_sizes(points, setting.rank, multiple_for(plan.multiple_of, name))
    if lower is None or setting.rank not in points:
        return None, None
    (macs, damage), (lower_macs, lower_damage) = points[setting.rank], points[lower]
    return (lower, (lower_damage - damage) / (macs - lower_macs)) if macs > lower_macs else (None, None)


def _next_sizes(sizes: Iterable[int], size: int, multiple: int) -> tuple[int | None, int | None]:
    """The next smaller and the next larger one that is a multiple; None where there is none."""
    multiples = [other for other in sizes if other % multiple == 0]
    return (
        max((other for other in multiples if other < size), default=None),
        min((other for other in multiples if other > size), default=None),
    )


def _price(price: float) -> str:
    return format_damage(price * _MEGA).rstrip(".")


def _curve_of(source: PlanSource, name: str, setting: Setting) -> Curve | None:
    return next((curve for curve in source.curves if (curve.layer, curve.form) == (name, setting.form)), None)


def _points(curve: Curve) -> list[tuple[int, int, float]]:
    """Rank, MACs and damage of every rank."""
    return list(zip(curve.ranks.tolist(), curve.macs.tolist(), curve.damage.tolist(), strict=True))


# --- choices ---


def _choices(source: PlanSource, spec: LayerSpec, plan: Plan | None) -> Iterator[_Choice]:
    step = _own_step(source, plan)
    around = tuple(name for name in step.dropped if is_inside(spec.name, (name,)))
    if around:
        # Nothing of it is left; what could be done instead is told as if the block stayed.
        blocks = [name for name in step.dropped if name not in around]
        step = step_of(source.structure, step.settings, step.groups, blocks)
    others = [*_pair_choices(source, spec, step, plan)]
    for group in _made_by(source, spec):
        if group.reason is None:
            others += _group_choices(source, spec, group, step, plan)
    yield from (replace(choice, is_chosen=choice.is_chosen and not around) for choice in others)
    yield from _block_choices(source, spec, step, around)


def _own_step(source: PlanSource, plan: Plan | None) -> Step:
    """What the plan does to the model of the study; nothing where there is no plan."""
    if plan is None or not plan.steps:
        return step_of(source.structure, {})
    return step_of(source.structure, plan.settings, plan.groups, plan.dropped)


def _model_ratio(source: PlanSource, step: Step) -> float:
    return ratio_of(source.before, cost_after(source.before, [step], has_bias=source.has_bias), "macs")


def _pair_choices(source: PlanSource, spec: LayerSpec, step: Step, plan: Plan | None) -> Iterator[_Choice]:
    chosen = step.settings.get(spec.name)
    curves = [curve for curve in source.curves if curve.layer == spec.name and len(curve.ranks)]
    if not curves:
        return
    multiple = 1 if plan is None else multiple_for(plan.multiple_of, spec.name)
    settings: list[Setting] = []
    if chosen is not None:
        curve = _curve_of(source, spec.name, chosen)
        if curve is not None:
            lower, upper = _next_sizes(curve.ranks.tolist(), chosen.rank, multiple)
            settings += [] if lower is None else [curve.setting(lower)]
            settings.append(chosen)
            settings += [] if upper is None else [curve.setting(upper)]
        else:
            settings.append(chosen)
        limit = next((macs for macs in _macs_of(curves, chosen)), None)
        limits = [] if limit is None else [limit]
    else:
        limits = [int(share * layer_cost(spec).macs) for share in _SHARES]
    for method in dict.fromkeys(curve.method for curve in curves):
        of_method = [curve for curve in curves if curve.method == method]
        if chosen is None or method != chosen.method:
            settings += [found for limit in limits if (found := _best_within(of_method, limit, multiple))]
    whole = layer_cost(spec).macs
    slimmed_macs = layer_cost(slimmed_spec(spec, source.structure.channels, step.groups)).macs
    others = {name: known for name, known in step.settings.items() if name != spec.name}
    without = _model_ratio(source, step_of(source.structure, others, step.groups, step.dropped))
    for setting in [None, *dict.fromkeys(settings)]:
        left = without
        if setting is not None:
            wanted = {**others, spec.name: setting}
            try:
                changed = step_of(source.structure, wanted, step.groups, step.dropped)
            except RankError:
                # Not beside the channels that the plan takes away.
                continue
            left = _model_ratio(source, changed)
        # All else stays, so what the model costs less is what the layer does.
        macs = slimmed_macs - (without - left) * source.before.macs
        yield _Choice(
            kind="pair",
            name=spec.name,
            text="no pair" if setting is None else _pair_text(setting),
            layer_ratio=macs / whole if whole else None,
            model_ratio=left,
            damage=0.0 if setting is None else damage_at(curves, spec.name, setting),
            is_chosen=plan is not None and setting == chosen,
        )


def _macs_of(curves: Sequence[Curve], setting: Setting) -> Iterator[int]:
    for curve in curves:
        if curve.form == setting.form:
            yield from (macs for rank, macs, _ in _points(curve) if rank == setting.rank)


def _best_within(curves: Sequence[Curve], limit: int, multiple: int) -> Setting | None:
    """The setting with the least damage among those that cost at most this; of equal ones the cheapest."""
    options = [
        (damage, macs, rank, curve)
        for curve in curves
        for rank, macs, damage in _points(curve)
        if macs <= limit and rank % multiple == 0
    ]
    if not options:
        return None
    _, _, rank, curve = min(options, key=lambda option: option[:2])
    return curve.setting(rank)


def _group_choices(
    source: PlanSource, spec: LayerSpec, group: GroupSpec, step: Step, plan: Plan | None
) -> Iterator[_Choice]:
    curve = next((curve for curve in source.group_curves if curve.group == group.name), None)
    chosen = step.groups.get(group.name)
    units: list[Sequence[int] | None] = [None, *_widths(curve, group, chosen, plan)]
    for kept in units:
        groups = {name: known for name, known in step.groups.items() if name != group.name}
        try:
            changed = step_of(
                source.structure,
                step.settings,
                groups if kept is None else {**groups, group.name: kept},
                step.dropped,
            )
        except (PlanError, RankError):
            # Pairs of the plan need more channels than would stay.
            continue
        yield _Choice(
            kind="group",
            name=group.name,
            text=f"{PRUNING} keeps {group.units if kept is None else len(kept)} of {group.units}",
            layer_ratio=_layer_ratio(spec, changed),
            model_ratio=_model_ratio(source, changed),
            damage=0.0 if kept is None else group_damage_at(source.group_curves, group.name, kept),
            is_chosen=plan is not None and (tuple(kept) if kept is not None else None) == chosen,
        )


def _layer_ratio(spec: LayerSpec, step: Step) -> float | None:
    """Share of a layer's MACs that a step leaves; None where it has none."""
    whole = layer_cost(spec).macs
    if not whole:
        return None
    slimmed, setting = slimmed_spec(spec, step.structure.channels, step.groups), step.settings.get(spec.name)
    left = layer_cost(slimmed) if setting is None else setting_cost(slimmed, setting, has_bias=False)
    return left.macs / whole


def _widths(
    curve: GroupCurve | None, group: GroupSpec, chosen: tuple[int, ...] | None, plan: Plan | None
) -> list[tuple[int, ...]]:
    """Units that stay: the chosen ones and one step to both sides, else some shares of all."""
    counts = [] if curve is None else curve.kept.tolist()
    if chosen is not None:
        multiple = 1 if plan is None else multiple_for(plan.multiple_of, group.name)
        step = max(multiple // int(np.gcd(multiple, group.unit_width)), 1)
        lower, upper = _next_sizes(counts, len(chosen), step)
        # Without a curve, nothing says which units another number keeps.
        return [
            chosen if count == len(chosen) or curve is None else curve.channels_kept(count)
            for count in (lower, len(chosen), upper)
            if count is not None
        ]
    wanted = [
        max((count for count in counts if count <= share * group.units), default=None) for share in _SHARES
    ]
    return [
        curve.channels_kept(count)
        for count in dict.fromkeys(wanted)
        if curve is not None and count is not None
    ]


def _block_choices(
    source: PlanSource, spec: LayerSpec, step: Step, dropped: Sequence[str]
) -> Iterator[_Choice]:
    for name in _blocks_around(source, spec):
        inside = {layer: setting for layer, setting in step.settings.items() if not is_inside(layer, (name,))}
        blocks = [block for block in step.dropped if not is_inside(block, (name,))]
        groups = _groups_outside(source, step, name)
        changed = step_of(source.structure, inside, groups, [*blocks, name])
        block = source.structure.channels.blocks[name]
        yield _Choice(
            kind="block",
            name=name,
            text=f"block {name!r} dropped",
            layer_ratio=0.0 if block.macs else None,
            model_ratio=_model_ratio(source, changed),
            damage=block_damage_at(source.block_damages, name),
            is_chosen=name in dropped,
        )


def _groups_outside(source: PlanSource, step: Step, block: str) -> dict[str, tuple[int, ...]]:
    """The slimmed groups of a step that are not wholly in a block."""
    outside = {}
    for name, kept in step.groups.items():
        try:
            step_of(source.structure, {}, {name: kept}, [block])
        except PlanError:
            continue
        outside[name] = kept
    return outside


def _pair_text(setting: Setting) -> str:
    return f"{setting_text(setting)} rank {setting.rank_text}"


def _choice_table(choices: Sequence[_Choice], unit: str) -> str:
    if not choices:
        return ""
    rows = [
        (
            choice.text,
            "-" if choice.layer_ratio is None else f"{choice.layer_ratio:.3f}",
            f"{choice.model_ratio:.4f}",
            format_damage(choice.damage),
            "<- chosen" if choice.is_chosen else "",
        )
        for choice in choices
    ]
    columns = ("choice", ">of its MACs", ">model MACs", f">damage ({unit})", "")
    return render_table(columns, rows)


def _facts(
    source: PlanSource,
    spec: LayerSpec,
    plan: Plan | None,
    unit: str,
    choices: Sequence[_Choice],
    sentences: Sequence[str],
) -> dict[str, Json]:
    channels = source.structure.channels
    setting = None if plan is None else plan.settings.get(spec.name)
    choice_facts: list[Json] = [
        {
            "kind": choice.kind,
            "name": choice.name,
            "text": choice.text,
            "layer_ratio": choice.layer_ratio,
            "model_ratio": choice.model_ratio,
            "damage": choice.damage,
            "chosen": choice.is_chosen,
        }
        for choice in choices
    ]
    return {
        "layer": spec.name,
        "class": spec.class_name,
        "kind": spec.kind,
        "weight_shape": list(spec.weight_shape),
        "macs": spec.macs,
        "params": spec.params,
        "share": spec.macs / source.before.macs if source.before.macs else None,
        "methods": list(spec.methods),
        "reason": spec.reason,
        "makes": {group.name: group.reason for group in _made_by(source, spec)},
        "reads": [
            group.name for group in channels.groups.values() if spec.name in readers_of(channels, group)
        ],
        "blocks": list(_blocks_around(source, spec)),
        "setting": None if setting is None else setting_facts(setting),
        "slimmed": None if plan is None or not plan.steps else slimmed_text(plan.steps[-1], spec),
        "text": " ".join(sentences),
        "unit": unit,
        "choices": choice_facts,
    }


def _all_of(names: Sequence[str]) -> str:
    """Names in a sentence: "a", "a and b", "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _words(word: str, names: Sequence[str]) -> str:
    """Names with their word: "group 'a'", "groups 'a', 'b' and 3 more"."""
    return f"{word}{'s' * (len(names) > 1)} {listed(names, _NAMES_SHOWN)}"
