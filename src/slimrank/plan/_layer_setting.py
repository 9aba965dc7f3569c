# SPDX-License-Identifier: Apache-2.0
"""What a person may write for one layer, checked and turned into a setting."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor
from numbers import Integral
from typing import Literal, NamedTuple, get_args

import numpy as np

from slimrank._errors import OptionError, RankError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import real_number, whole_number
from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_cost, pair_has_bias, slimmed_spec
from slimrank.plan._rounding import Multiples, multiple_for
from slimrank.plan._structure import Structure
from slimrank.records import Curve, Form, LayerSpec, Method, Setting

_MethodAndAmount = tuple[str, float | Mapping[str, int | float | str | Sequence[int]]]
TypedSetting = Setting | _MethodAndAmount
# Written out: through another union's name, mypy takes {"rank": 8, "form": "v_h"} for a dict of objects.
SettingLike = Setting | _MethodAndAmount | Literal["drop"] | list[Setting | _MethodAndAmount] | None

# What ``Plan.replace`` accepts: it has no study that says which methods were measured.
METHOD_NAMES: tuple[Method, ...] = get_args(Method)

# What a person may say of a pair, beside its method.
_SETTING_KEYS = ("rank", "ratio", "form")
# A ratio that a person computed, cost / cost or kept / units, must find that cost or number again in spite of
# its rounding to a float; far below the step from one rank to the next.
RATIO_SLACK = Fraction(1, 10**12)


class _PairRequest(NamedTuple):
    """What a person asks of one layer: exactly one of rank and ratio, and the form where it was given."""

    method: Method
    form: Form | None
    rank: int | None
    ratio: Fraction | None


class _RankRange(NamedTuple):
    """The ranks that one form can take.

    Attributes:
        form: how the pair is split.
        layer_macs: MACs of the layer, before its groups slim it.
        macs_per_rank: MACs of the pair at rank 1; those of a pair grow in proportion to its rank.
        full: the rank at which the pair reproduces the layer, slimmed where its groups are.
        top: the largest rank at which the pair costs no more MACs than the layer, slimmed likewise.
    """

    form: Form
    layer_macs: int
    macs_per_rank: int
    full: int
    top: int


def setting_for(
    structure: Structure,
    name: str,
    typed: TypedSetting,
    *,
    methods: Iterable[str],
    has_bias: bool,
    multiples: Multiples,
    curves: Sequence[Curve] = (),
    current: Setting | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> Setting:
    """The setting that a person means for one layer.

    Args:
        structure: of the model.
        name: of one of its layers.
        typed: ``(method, ratio of the layer's MACs)``, ``(method, {"rank": r})`` or ``(method, {"ratio":
            x})``, both with an optional "form"; or a setting.
        methods: that may be named.
        has_bias: whether every second factor carries a bias; else only where the layer has one.
        multiples: what ranks are multiples of. Ranks round up; a ratio whose rounded rank would cost more
            than the layer takes the largest multiple that does not.
        curves: damages; the form with the lowest one is taken where none is given.
        current: what the plan does to this layer now; its form is preferred where there are no curves.
        groups: group -> units that stay; the pair replaces the slimmed layer, and costs no more than that.

    Returns:
        The setting.

    Raises:
        UnknownNameError: no such method or form.
        OptionError: a setting of the wrong kind, or a method or form that does not apply to the layer.
        RankError: a rank or ratio that the layer cannot take, or that makes it cost more MACs than before.
    """
    whole = structure.layers[name]
    spec = slimmed_spec(whole, structure.channels, groups or {})
    request = _read_request(name, typed, tuple(methods))
    forms = _requested_forms(whole, request)
    multiple = multiple_for(multiples, name)
    ranges = [_rank_range(whole, spec, form, has_bias=has_bias) for form in forms]
    ranks = {reachable.form: _rounded_rank(reachable, request, multiple) for reachable in ranges}
    preferred = current.form if current is not None and current.method == request.method else None

    def preference(form: Form) -> tuple[float, bool, int, int]:
        damage = damage_at(curves, name, Setting(method=request.method, form=form, rank=ranks[form] or 1))
        macs = pair_cost(
            spec,
            form,
            ranks[form] or 1,
            has_bias=pair_has_bias(spec, plan_has_bias=has_bias),
        ).macs
        return float("inf") if damage is None else damage, form != preferred, macs, forms.index(form)

    possible = [form for form in forms if ranks[form] is not None]
    if not possible:
        raise RankError(_why_none(whole, spec, request, multiple, ranges))
    form = min(possible, key=preference)
    return Setting(method=request.method, form=form, rank=ranks[form] or 1)


def damage_at(curves: Iterable[Curve], name: str, setting: Setting) -> float | None:
    """The damage that curves predict for a setting.

    Args:
        curves: of any layers.
        name: dotted layer name.
        setting: for that layer.

    Returns:
        In the unit of the curves; None where no curve holds that form and rank.
    """
    for curve in curves:
        if curve.layer == name and curve.method == setting.method and curve.form == setting.form:
            index = int(np.searchsorted(curve.ranks, setting.rank))
            if index < len(curve.ranks) and curve.ranks[index] == setting.rank:
                return float(curve.damage[index])
    return None


def method_of(text: str, among: Iterable[Method] = tuple(FORMS)) -> Method | None:
    """The method of this name; None where there is none.

    Args:
        text: the name.
        among: methods that may be meant; those that split a layer into a pair where none are given.
    """
    return next((method for method in among if method == text), None)


def form_of(method: Method, text: str) -> Form | None:
    """The form of this name; None where the method has none."""
    return next((form for form in FORMS.get(method, ()) if form == text), None)


def _read_request(name: str, typed: TypedSetting, methods: Sequence[str]) -> _PairRequest:
    if isinstance(typed, Setting):
        typed = (typed.method, {"rank": typed.rank, "form": typed.form})
    method = method_of(typed[0])
    if method is None or method not in methods:
        raise UnknownNameError(
            f"layer {name!r}: method {typed[0]!r} is not there; {nearest(typed[0], methods)}"
        )
    amount: Mapping[str, object] = typed[1] if isinstance(typed[1], Mapping) else {"ratio": typed[1]}
    for key in amount:
        if key not in _SETTING_KEYS:
            raise OptionError(
                f"layer {name!r}: {key!r} is no key of a setting; {nearest(str(key), _SETTING_KEYS)}"
            )
    if ("rank" in amount) == ("ratio" in amount):
        raise OptionError(f'layer {name!r}: give one of "rank" and "ratio", not {sorted(map(str, amount))}')
    form = None
    if "form" in amount:
        form = form_of(method, amount["form"]) if isinstance(amount["form"], str) else None
        if form is None:
            close = nearest(str(amount["form"]), FORMS[method])
            raise UnknownNameError(f"layer {name!r}: {method} has no form {amount['form']!r}; {close}")
    if "rank" in amount:
        return _PairRequest(method, form, _read_rank(name, amount["rank"]), None)
    ratio = read_ratio(
        f"layer {name!r}", amount["ratio"], of="the layer's MACs", instead='{"rank": 32} for a rank'
    )
    return _PairRequest(method, form, None, ratio)


def _read_rank(name: str, rank: object) -> int:
    number = whole_number(rank)
    if number is None:
        raise OptionError(f'layer {name!r}: rank {rank!r} is no whole number; give e.g. {{"rank": 32}}')
    if number < 1:
        raise RankError(f"layer {name!r}: rank {rank} is below 1; raise it or drop the layer from the plan")
    return number


def read_ratio(where: str, ratio: object, *, of: str, instead: str) -> Fraction:
    """A share that a person wrote, through its decimal digits, so that 0.4 means four tenths.

    Args:
        where: for errors.
        ratio: to check.
        of: what it is a share of; for errors.
        instead: what else could be given; for errors.

    Returns:
        In (0, 1].

    Raises:
        OptionError: no fraction.
        RankError: outside (0, 1].
    """
    # A whole number is more likely a rank than all of them.
    number = None if isinstance(ratio, Integral) else real_number(ratio)
    if number is None:
        raise OptionError(
            f"{where}: ratio {ratio!r} is no fraction of {of}; give e.g. 0.5 (1.0 for all of them), "
            f"or {instead}"
        )
    if not 0 < number <= 1:
        raise RankError(f"{where}: ratio {ratio} is outside (0, 1]; give the share of {of} to keep")
    return Fraction(repr(number))


def _requested_forms(spec: LayerSpec, request: _PairRequest) -> tuple[Form, ...]:
    forms = forms_of(spec, request.method)
    if request.method not in spec.methods or not forms:
        if spec.methods:
            cure = f"it can take {listed(spec.methods)}"
        else:
            cure = f"{spec.reason or 'no method applies'}; drop it from the plan"
        raise OptionError(
            f"layer {spec.name!r}: {request.method} does not apply to this {spec.class_name}; {cure}"
        )
    if request.form is None:
        return forms
    if request.form not in forms:
        raise OptionError(
            f"layer {spec.name!r}: form {request.form!r} does not apply to kernel {spec.kernel}; "
            f"take {listed(forms)}"
        )
    return (request.form,)


def _rank_range(whole: LayerSpec, spec: LayerSpec, form: Form, *, has_bias: bool) -> _RankRange:
    # A slimmed layer is left without a pair rather than with one that costs the same.
    macs = layer_cost(spec).macs - (spec is not whole)
    per_rank = pair_cost(spec, form, 1, has_bias=pair_has_bias(spec, plan_has_bias=has_bias)).macs
    full = max_rank(spec, form)
    # A layer that is never called has no MACs: every rank is as cheap.
    top = min(full, macs // per_rank) if per_rank else full
    return _RankRange(form, layer_cost(whole).macs, per_rank, full, top)


def _rounded_rank(reachable: _RankRange, request: _PairRequest, multiple: int) -> int | None:
    """The rank of one form, rounded; None where it cannot be reached."""
    if request.rank is not None:
        rank = -(-request.rank // multiple) * multiple
        return rank if rank <= reachable.top else None
    if request.ratio is None or not reachable.macs_per_rank:
        return None
    most_macs = request.ratio * reachable.layer_macs * (1 + RATIO_SLACK)
    rank = min(floor(most_macs / reachable.macs_per_rank), reachable.full)
    if rank > reachable.top:
        # Only where the layer is slimmed: the share is of what it cost before.
        return None
    rounded = -(-rank // multiple) * multiple
    return (rounded if rounded <= reachable.top else reachable.top // multiple * multiple) or None


def _why_none(
    whole: LayerSpec, spec: LayerSpec, request: _PairRequest, multiple: int, ranges: Sequence[_RankRange]
) -> str:
    """The message for a request that no form can meet."""
    best = max(ranges, key=lambda reachable: reachable.top)
    cheapest = min(ranges, key=lambda reachable: reachable.macs_per_rank)
    where = f"layer {spec.name!r}: {request.method} "
    layer = "layer" if spec is whole else "slimmed layer"
    if best.top < 1:
        return where + f"costs more MACs than the {layer} at every rank; drop the layer from the plan"
    if best.top < multiple:
        return (
            f"{where}has ranks 1..{best.top} that save MACs, and none is a multiple of {multiple}; "
            f"lower multiple_of for this layer or drop it from the plan"
        )
    if request.rank is not None:
        rank = -(-request.rank // multiple) * multiple
        rounded = f" (rounded up to {rank}, a multiple of {multiple})" if rank != request.rank else ""
        limit = max_rank(spec, best.form)
        why = (
            f"the {layer} has no such rank"
            if rank > limit
            else f"the pair would cost more MACs than the {layer}"
        )
        return (
            f"{where}rank {request.rank}{rounded} is outside {multiple}..{best.top // multiple * multiple}: "
            f"{why}; lower it or drop the layer from the plan"
        )
    if not cheapest.macs_per_rank:
        return (
            where + 'has no ratio, since the layer is never called; give {"rank": r} or drop it from the plan'
        )
    smallest = cheapest.macs_per_rank / cheapest.layer_macs
    if spec is not whole and float(request.ratio or 0) >= smallest:
        # At the largest multiple, so that what is named here is accepted.
        most_macs = max(
            reachable.top // multiple * multiple * reachable.macs_per_rank for reachable in ranges
        )
        largest = most_macs / cheapest.layer_macs
        return (
            f"{where}ratio {float(request.ratio or 0):g} is of the layer before slimming, and there the pair "
            f"would cost more MACs than the slimmed layer; give at most {floor(largest * 1e4) / 1e4:g} or "
            "drop the layer from the plan"
        )
    return (
        f"{where}ratio {float(request.ratio or 0):g} is below the smallest reachable one, "
        f"{ceil(smallest * 1e4) / 1e4:g} at rank 1; raise it or drop the layer from the plan"
    )
