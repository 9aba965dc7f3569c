# SPDX-License-Identifier: Apache-2.0
"""The plan file: JSON, sorted, written whole or not at all."""

import os
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypedDict

from slimrank._errors import OptionError, PlanError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank.cost import FORM_ROWS, FORMS, forms_of, slimmed_spec
from slimrank.files import (
    Json,
    as_flag,
    as_integer,
    as_integers,
    as_list,
    as_number,
    as_object,
    as_text,
    check_format,
    from_text,
    read_text,
    to_text,
    write_text,
)
from slimrank.plan._channels_file import channels_from_json, channels_to_json
from slimrank.plan._layer_setting import form_of, method_of
from slimrank.plan._rounding import Multiples, check_multiple_of, multiple_for
from slimrank.plan._step import check_dropped, check_groups, check_pair, step_of
from slimrank.plan._structure import Step, Structure, cost_after, names_of
from slimrank.records import (
    METRICS,
    Call,
    ChannelMap,
    Cost,
    LayerKind,
    LayerSpec,
    Metric,
    PlannedActivations,
    PlannedLatency,
    Setting,
)

# Written into each plan file; a higher number would keep older versions from misreading a new layout.
PLAN_FORMAT = 1

# Every file has these.
_PLAN_KEYS = ("format", "steps", "costs", "has_bias", "select", "damage", "gap", "multiple_of", "budgets")
# Older files lack the first; the second is written where a step slims groups, the third where "auto" chose
# multiples, the fourth where the plan was chosen by measured times, the fifth where a budget was no ratio,
# the last where it was chosen for a peak of activations, and where something was not chosen but given.
_OPTIONAL_PLAN_KEYS = ("score_loss", "choice", "relaxed", "latency", "asked", "activations", "fixed")
# Of what is given.
_FIXED_KINDS = ("layers", "groups", "blocks")
# Who may have chosen a plan.
_SELECT_NAMES = ("optimal", "greedy", "uniform", "manual")
# Spelled out, so that a kind read from a file gets the type of the literal.
_LAYER_KINDS: tuple[LayerKind, ...] = ("linear", "conv1d", "conv2d", "conv3d", "recurrent", "other")
# A layer writes these, and of the rest what differs from its default, so that files stay short.
_REQUIRED_LAYER_KEYS = tuple(f.name for f in fields(LayerSpec) if f.default is MISSING and f.name != "name")
_LAYER_DEFAULTS = {f.name: f.default for f in fields(LayerSpec) if f.default is not MISSING}


class PlanFields(TypedDict):
    """The fields of a plan, as ``Plan`` takes them."""

    steps: tuple[Step, ...]
    before: Cost
    has_bias: bool
    select: str
    damage: float | None
    score_loss: float | None
    gap: float | None
    multiple_of: Multiples
    budgets: Mapping[Metric, float]
    asked: Mapping[Metric, str]
    relaxed: tuple[str, ...] | None
    latency: PlannedLatency | None
    fixed: Mapping[str, tuple[str, ...]]
    activations: PlannedActivations | None


def write_plan(path: str | os.PathLike[str], plan: PlanFields, after: Cost) -> None:
    """Write a plan as JSON.

    Args:
        path: of the file; an existing one is replaced, whole or not at all.
        plan: to write.
        after: cost of what it makes of the model.

    Raises:
        FileError: the file cannot be written.
        PlanError: the plan holds a number that is not finite.
    """
    content = plan_to_json(plan, after)
    try:
        text = to_text(content)
    except ValueError as error:
        raise PlanError(
            f"plan: damage, score_loss, gap, latency or a budget is not finite ({error}); plan anew"
        ) from error
    write_text(path, text, what="plan file")


def plan_to_json(plan: PlanFields, after: Cost) -> dict[str, Json]:
    """A plan as JSON: the content of its file, also where another file holds plans.

    Args:
        plan: to write.
        after: cost of what it makes of the model.

    Returns:
        The content; ``plan_from_json`` reads it.
    """
    rounding = plan["multiple_of"]
    content: dict[str, Json] = {
        "format": PLAN_FORMAT,
        "steps": [_step_to_json(step) for step in plan["steps"]],
        "costs": {"before": _cost_to_json(plan["before"]), "after": _cost_to_json(after)},
        "has_bias": plan["has_bias"],
        "select": plan["select"],
        "damage": plan["damage"],
        "score_loss": plan["score_loss"],
        "gap": plan["gap"],
        # A list of pairs, since sorting would lose which glob comes first.
        "multiple_of": [[glob, number] for glob, number in rounding.items()]
        if isinstance(rounding, Mapping)
        else rounding,
        "budgets": {str(metric): ratio for metric, ratio in plan["budgets"].items()},
    }
    if any(step.groups for step in plan["steps"]):
        content["choice"] = _choice_checksum(plan["steps"])
    if plan["relaxed"] is not None:
        content["relaxed"] = list(plan["relaxed"])
    if plan["asked"]:
        content["asked"] = {str(metric): words for metric, words in plan["asked"].items()}
    if plan["fixed"]:
        content["fixed"] = {kind: list(names) for kind, names in plan["fixed"].items()}
    if plan["latency"] is not None:
        told = {known.name: getattr(plan["latency"], known.name) for known in fields(PlannedLatency)}
        # No words are no key, as in older files.
        content["latency"] = {name: value for name, value in told.items() if name != "words" or value}
    if plan["activations"] is not None:
        content["activations"] = {
            known.name: getattr(plan["activations"], known.name) for known in fields(PlannedActivations)
        }
    return content


def read_plan(path: str | os.PathLike[str]) -> PlanFields:
    """Read a plan file.

    Args:
        path: of the file.

    Returns:
        The fields of a plan; ``Plan.load`` says what an edited file gives.

    Raises:
        FileError: the file is missing or cannot be read.
        PlanError: it is no plan, is cut short, holds unknown keys, layers or settings, or is of another
            format.
        RankError: a rank that the layer does not have.
    """
    where = f"plan file {Path(path)}"
    text = read_text(path, where, advice="give a file that plan.save wrote", error=PlanError)
    return plan_from_json(from_text(text, where), where)


def plan_from_json(value: Json, where: str) -> PlanFields:
    """The plan of a JSON value that ``plan_to_json`` made, and that a person may have edited.

    Args:
        value: of a file.
        where: for errors.

    Returns:
        The fields of a plan; ``Plan.load`` says what an edited one gives.

    Raises:
        PlanError: it is no plan, holds unknown keys, layers or settings, or is of another format.
        RankError: a rank that the layer does not have.
    """
    content = _checked_format(as_object(value, where), where)
    as_object(content, where, required=_PLAN_KEYS, optional=_OPTIONAL_PLAN_KEYS)
    costs = as_object(content["costs"], f"{where}: costs", required=("before",), optional=("after",))
    steps = tuple(
        _step_from_json(step, f"{where}: steps[{index}]")
        for index, step in enumerate(as_list(content["steps"], f"{where}: steps"))
    )
    before = _cost_from_json(costs["before"], f"{where}: costs.before")
    has_bias = as_flag(content["has_bias"], f"{where}: has_bias")
    select = as_text(content["select"], f"{where}: select")
    if select not in _SELECT_NAMES:
        raise PlanError(f"{where}: select is {select!r}; {nearest(select, _SELECT_NAMES)}")
    numbers = {key: content.get(key) for key in ("damage", "score_loss", "gap")}
    damage, score_loss, gap = (
        None if number is None else as_number(number, f"{where}: {key}") for key, number in numbers.items()
    )
    budgets = _budgets_from_json(content["budgets"], f"{where}: budgets")
    asked = _asked_from_json(content.get("asked", {}), f"{where}: asked")
    after = cost_after(before, steps, has_bias=has_bias)
    multiple_of = _multiple_from_json(content["multiple_of"], steps, f"{where}: multiple_of")
    relaxed = _relaxed_from_json(content["relaxed"], steps, where) if "relaxed" in content else None
    latency = _latency_from_json(content["latency"], f"{where}: latency") if "latency" in content else None
    fixed = _fixed_from_json(content.get("fixed", {}), steps, f"{where}: fixed")
    activations = None
    if "activations" in content:
        activations = _activations_from_json(content["activations"], f"{where}: activations")
    written_after = _cost_from_json(costs["after"], f"{where}: costs.after") if "after" in costs else after
    if written_after != after or content.get("choice", _choice_checksum(steps)) != _choice_checksum(steps):
        # A person edited the file: what was predicted and asked for belonged to the old settings.
        select, damage, score_loss, gap, latency, activations = "manual", None, None, None, None, None
        budgets, asked, fixed = {}, {}, {}
        if not _are_multiples(steps, multiple_of):
            multiple_of, relaxed = 1, None
    return PlanFields(
        steps=steps,
        before=before,
        has_bias=has_bias,
        select=select,
        damage=damage,
        score_loss=score_loss,
        gap=gap,
        multiple_of=multiple_of,
        budgets=budgets,
        asked=asked,
        relaxed=relaxed,
        latency=latency,
        fixed=fixed,
        activations=activations,
    )


def _choice_checksum(steps: tuple[Step, ...]) -> str:
    """Checksum of what is done: costs alone do not show that a group keeps other units of the same number."""
    return sha256(repr([step.key for step in steps]).encode()).hexdigest()


def _are_multiples(steps: tuple[Step, ...], multiple_of: Multiples) -> bool:
    """Whether every rank and number of channels is a multiple; a person may have edited either."""
    sizes = [
        (name, size)
        for step in steps
        for name, size in (
            *((name, rank) for name, setting in step.settings.items() for rank in setting.ranks),
            *(
                (name, len(kept) * step.structure.channels.groups[name].unit_width)
                for name, kept in step.groups.items()
            ),
        )
    ]
    return all(size % multiple_for(multiple_of, name) == 0 for name, size in sizes)


def _checked_format(content: dict[str, Json], where: str) -> dict[str, Json]:
    if "format" not in content:
        raise PlanError(f'{where}: "format" is missing; give a file that plan.save wrote')
    check_format(
        content["format"], PLAN_FORMAT, where=where, advice="install a newer slimrank", error=PlanError
    )
    return content


def _step_to_json(step: Step) -> Json:
    structure: dict[str, Json] = {
        "sha256": step.structure.sha256,
        "order": list(step.structure.layers),
        "layers": {name: _layer_to_json(spec) for name, spec in step.structure.layers.items()},
    }
    # Left out where no groups were looked for: the file is then as older versions wrote it.
    if step.structure.channels != ChannelMap():
        structure["channels"] = channels_to_json(step.structure.channels)
    content: dict[str, Json] = {
        "structure": structure,
        "layers": {
            name: [_setting_to_json(setting) for setting in settings]
            for name, settings in step.layers.items()
        },
        "groups": {name: list(kept) for name, kept in step.groups.items()},
    }
    return {**content, "dropped": list(step.dropped)} if step.dropped else content


def _step_from_json(value: Json, where: str) -> Step:
    content = as_object(value, where, required=("structure", "layers", "groups"), optional=("dropped",))
    structure = _structure_from_json(content["structure"], f"{where}.structure")
    groups = {
        name: as_integers(kept, f"{where}.groups[{name!r}]")
        for name, kept in as_object(content["groups"], f"{where}.groups").items()
    }
    check_groups(structure.channels, groups, where)
    dropped = [
        _layer_name(name, f"{where}.dropped")
        for name in as_list(content.get("dropped", []), f"{where}.dropped")
    ]
    repeated = next((name for name in dropped if dropped.count(name) > 1), None)
    if repeated is not None:
        raise PlanError(f"{where}.dropped: {repeated!r} stands twice; delete one of them")
    chosen = as_object(content["layers"], f"{where}.layers")
    for name in chosen:
        if name not in structure.layers:
            raise PlanError(
                f"{where}.layers: {name!r} is no layer of the structure; {nearest(name, structure.layers)}"
            )
        if not name:
            raise PlanError(
                f"{where}.layers: '' is the model itself, which nothing can replace; delete the entry"
            )
    check_dropped(structure.channels, chosen, groups, dropped, where)
    settings = {
        name: _setting_from_json(
            _only_setting(chosen[name], f"{where}.layers[{name!r}]"),
            spec,
            slimmed_spec(spec, structure.channels, groups),
            f"{where}.layers[{name!r}][0]",
        )
        for name, spec in structure.layers.items()
        if name in chosen
    }
    return step_of(structure, settings, groups, dropped, where=where)


def _layer_name(value: Json, where: str) -> str:
    """A dotted name; "" is the model itself."""
    name = as_text(value, where)
    if name and not all(name.split(".")):
        raise PlanError(
            f"{where}: {name!r} cannot be the name of a layer, which is words with one dot between each two; "
            "restore the file or save the plan again"
        )
    return name


def _setting_to_json(setting: Setting) -> Json:
    content: dict[str, Json] = {"method": setting.method, "form": setting.form, "rank": setting.rank}
    return content if setting.rank_in is None else {**content, "rank_in": setting.rank_in}


def _only_setting(value: Json, where: str) -> Json:
    settings = as_list(value, where)
    if len(settings) != 1:
        raise PlanError(
            f"{where}: {len(settings)} settings; this version takes one for each layer, so leave one"
        )
    return settings[0]


def _setting_from_json(value: Json, spec: LayerSpec, slimmed: LayerSpec, where: str) -> Setting:
    content = as_object(value, where, required=("method", "form", "rank"), optional=("rank_in",))
    method_text = as_text(content["method"], f"{where}.method")
    method = method_of(method_text)
    if method is None:
        raise PlanError(f"{where}: unknown method {method_text!r}; {nearest(method_text, FORMS)}")
    form_text = as_text(content["form"], f"{where}.form")
    form = form_of(method, form_text)
    if form is None:
        raise PlanError(f"{where}: {method} has no form {form_text!r}; {nearest(form_text, FORMS[method])}")
    if form not in forms_of(spec, method):
        possible = [other for known in FORMS for other in forms_of(spec, known)]
        raise PlanError(
            f"{where}: {method} {form} does not apply to this {spec.class_name} {spec.weight_shape}; "
            f"{'it can take ' + listed(possible) if possible else 'no method does, delete the entry'}"
        )
    if FORM_ROWS[form].has_third != ("rank_in" in content):
        raise PlanError(
            f"{where}: {form} takes "
            + ("two ranks; add rank_in" if FORM_ROWS[form].has_third else "one rank; delete rank_in")
        )
    setting = Setting(
        method=method,
        form=form,
        rank=as_integer(content["rank"], f"{where}.rank"),
        rank_in=as_integer(content["rank_in"], f"{where}.rank_in") if "rank_in" in content else None,
    )
    check_pair(slimmed, setting, where, slimmed=slimmed is not spec)
    return setting


def _structure_from_json(value: Json, where: str) -> Structure:
    content = as_object(value, where, required=("sha256", "order", "layers"), optional=("channels",))
    specs = as_object(content["layers"], f"{where}.layers")
    order = [_layer_name(name, f"{where}.order") for name in as_list(content["order"], f"{where}.order")]
    unmatched = set(order).symmetric_difference(specs)
    if unmatched or len(order) != len(specs):
        raise PlanError(
            f"{where}: order and layers do not hold the same names "
            f"({listed(sorted(unmatched)) or 'one stands twice'}); save the plan again"
        )
    layers = {name: _layer_from_json(name, specs[name], f"{where}.layers[{name!r}]") for name in order}
    return Structure(
        sha256=as_text(content["sha256"], f"{where}.sha256"),
        layers=layers,
        channels=channels_from_json(content["channels"], layers, f"{where}.channels")
        if "channels" in content
        else ChannelMap(),
    )


def _layer_to_json(spec: LayerSpec) -> Json:
    every: dict[str, Json] = {
        "kind": spec.kind,
        "class_name": spec.class_name,
        "weight_shape": list(spec.weight_shape),
        "has_bias": spec.has_bias,
        "dtype": spec.dtype,
        "itemsize": spec.itemsize,
        "stride": list(spec.stride),
        "dilation": list(spec.dilation),
        "padding": spec.padding if isinstance(spec.padding, str) else list(spec.padding),
        "padding_mode": spec.padding_mode,
        "groups": spec.groups,
        "calls": [[list(call.input_shape), list(call.output_shape)] for call in spec.calls],
        "macs": spec.macs,
        "params": spec.params,
        "methods": list(spec.methods),
        "reason": spec.reason,
    }
    return {
        key: value
        for key, value in every.items()
        if key in _REQUIRED_LAYER_KEYS or getattr(spec, key) != _LAYER_DEFAULTS[key]
    }


def _layer_from_json(name: str, value: Json, where: str) -> LayerSpec:
    content = as_object(value, where, required=_REQUIRED_LAYER_KEYS, optional=tuple(_LAYER_DEFAULTS))
    kind = as_text(content["kind"], f"{where}.kind")
    known_kind = next((known for known in _LAYER_KINDS if known == kind), None)
    if known_kind is None:
        raise PlanError(f"{where}: unknown kind {kind!r}; {nearest(kind, _LAYER_KINDS)}")
    reason = content.get("reason")
    return LayerSpec(
        name=name,
        kind=known_kind,
        class_name=as_text(content["class_name"], f"{where}.class_name"),
        weight_shape=as_integers(content["weight_shape"], f"{where}.weight_shape"),
        has_bias=as_flag(content["has_bias"], f"{where}.has_bias"),
        dtype=as_text(content["dtype"], f"{where}.dtype"),
        itemsize=as_integer(content["itemsize"], f"{where}.itemsize"),
        stride=as_integers(content.get("stride", []), f"{where}.stride"),
        dilation=as_integers(content.get("dilation", []), f"{where}.dilation"),
        padding=_padding_from_json(content.get("padding", []), f"{where}.padding"),
        padding_mode=as_text(content.get("padding_mode", "zeros"), f"{where}.padding_mode"),
        groups=as_integer(content.get("groups", 1), f"{where}.groups"),
        calls=tuple(
            _call_from_json(call, f"{where}.calls")
            for call in as_list(content.get("calls", []), f"{where}.calls")
        ),
        macs=as_integer(content.get("macs", 0), f"{where}.macs"),
        params=as_integer(content.get("params", 0), f"{where}.params"),
        methods=tuple(
            as_text(method, f"{where}.methods")
            for method in as_list(content.get("methods", []), f"{where}.methods")
        ),
        reason=None if reason is None else as_text(reason, f"{where}.reason"),
    )


def _padding_from_json(value: Json, where: str) -> tuple[int, ...] | Literal["same", "valid"]:
    if value == "same":
        return "same"
    if value == "valid":
        return "valid"
    return as_integers(value, where)


def _call_from_json(value: Json, where: str) -> Call:
    shapes = as_list(value, where)
    if len(shapes) != 2:
        raise PlanError(f"{where}: a call holds {len(shapes)} shapes; write [input shape, output shape]")
    return Call(input_shape=as_integers(shapes[0], where), output_shape=as_integers(shapes[1], where))


def _cost_to_json(cost: Cost) -> dict[str, Json]:
    return {metric: cost.metric(metric) for metric in METRICS}


def _cost_from_json(value: Json, where: str) -> Cost:
    content = as_object(value, where, required=METRICS)
    macs, params, size = (as_integer(content[metric], f"{where}.{metric}") for metric in METRICS)
    return Cost(macs=macs, params=params, bytes=size)


def _budgets_from_json(value: Json, where: str) -> dict[Metric, float]:
    content = as_object(value, where, required=(), optional=METRICS)
    return {
        metric: as_number(content[metric], f"{where}.{metric}") for metric in METRICS if metric in content
    }


def _asked_from_json(value: Json, where: str) -> dict[Metric, str]:
    content = as_object(value, where, required=(), optional=METRICS)
    return {metric: as_text(content[metric], f"{where}.{metric}") for metric in METRICS if metric in content}


def _fixed_from_json(value: Json, steps: tuple[Step, ...], where: str) -> dict[str, tuple[str, ...]]:
    content = as_object(value, where, required=(), optional=_FIXED_KINDS)
    found = {}
    for kind in _FIXED_KINDS:
        if kind not in content:
            continue
        structure = steps[-1].structure if steps else None
        known: dict[str, Collection[str]] = {
            "layers": () if structure is None else structure.layers,
            "groups": () if structure is None else structure.channels.groups,
            "blocks": () if structure is None else structure.channels.blocks,
        }
        names = tuple(as_text(name, f"{where}.{kind}") for name in as_list(content[kind], f"{where}.{kind}"))
        for name in names:
            if name not in known[kind]:
                raise PlanError(f"{where}.{kind}: the model has no {name!r}; {nearest(name, known[kind])}")
        found[kind] = names
    return found


def _activations_from_json(value: Json, where: str) -> PlannedActivations:
    content = as_object(value, where, required=tuple(known.name for known in fields(PlannedActivations)))
    return PlannedActivations(
        asked=as_number(content["asked"], f"{where}.asked"),
        before=as_integer(content["before"], f"{where}.before"),
        after=as_integer(content["after"], f"{where}.after"),
        words=as_text(content["words"], f"{where}.words"),
    )


def _latency_from_json(value: Json, where: str) -> PlannedLatency:
    names = tuple(known.name for known in fields(PlannedLatency) if known.name != "words")
    content = as_object(value, where, required=names, optional=("words",))
    return PlannedLatency(
        asked=as_number(content["asked"], f"{where}.asked"),
        predicted=as_number(content["predicted"], f"{where}.predicted"),
        before_ms=as_number(content["before_ms"], f"{where}.before_ms"),
        backend=as_text(content["backend"], f"{where}.backend"),
        threads=as_integer(content["threads"], f"{where}.threads"),
        batch=as_integer(content["batch"], f"{where}.batch"),
        precision=as_text(content["precision"], f"{where}.precision"),
        words=as_text(content.get("words", ""), f"{where}.words"),
    )


def _multiple_from_json(value: Json, steps: tuple[Step, ...], where: str) -> Multiples:
    multiple: Multiples
    if isinstance(value, list):
        pairs = [as_list(pair, where) for pair in value]
        if any(len(pair) != 2 for pair in pairs):
            raise PlanError(f"{where}: an entry is no pair; write [glob, number]")
        multiple = {as_text(glob, where): as_integer(number, where) for glob, number in pairs}
    else:
        multiple = as_integer(value, where)
    try:
        check_multiple_of(multiple, [name for step in steps for name in names_of(step.structure)])
    except (OptionError, UnknownNameError) as error:
        raise PlanError(f"{where}: {error}") from error
    return multiple


def _relaxed_from_json(value: Json, steps: tuple[Step, ...], where: str) -> tuple[str, ...]:
    known = [name for step in steps for name in names_of(step.structure)]
    names = tuple(as_text(name, f"{where}: relaxed") for name in as_list(value, f"{where}: relaxed"))
    for name in names:
        if name not in known:
            raise PlanError(f"{where}: relaxed: the model has no {name!r}; {nearest(name, known)}")
    return names
