# SPDX-License-Identifier: Apache-2.0
"""What a person may write for one layer, checked and turned into a setting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slimrank._errors import OptionError, RankError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import real_number, whole_number
from slimrank.cost import (
    FORMS,
    forms_of,
    layer_cost,
    max_rank,
    pair_costs,
    pair_has_bias,
    rank_problem,
    ranks_at,
    ranks_in_range,
    setting_cost,
    slimmed_spec,
    usual_ranks_in,
)
from slimrank.plan._rounding import Multiples, multiple_for
from slimrank.plan._structure import Structure
from slimrank.records import Curve, Form, LayerSpec, Method, Setting

_MethodAndAmount = tuple[str, float | Mapping[str, int | float | str | Sequence[int]]]
TypedSetting = Setting | _MethodAndAmount
# Written out: through another union's name, mypy takes {"rank": 8, "form": "v_h"} for a dict of objects.
SettingLike = Setting | _MethodAndAmount | Literal["drop"] | list[Setting | _MethodAndAmount] | None

# What a person may say of a pair, beside its method.
_SETTING_KEYS = ("rank", "ratio", "form")
# How many ranks a person may give: one, or both of three factors.
_RANK_COUNTS = (1, 2)
# A ratio that a person computed, cost / cost or kept / units, must find that cost or number again in spite of
# its rounding to a float; far below the step from one rank to the next.
RATIO_SLACK = Fraction(1, 10**12)


class _PairRequest(NamedTuple):
    """What a person asks of one layer: exactly one of ranks and ratio, and the form where it was given."""

    method: Method
    form: Form | None
    ranks: tuple[int, ...]
    ratio: Fraction | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ladder:
    """The ranks of one form, and what they cost in place of a layer that is slimmed where its groups are.

    Attributes:
        spec: the layer, slimmed.
        form: how it is split.
        has_bias: whether the last factor carries a bias.
        layer_macs: MACs of the layer, before its groups slim it.
        most_macs: what a replacement may cost at most, not to cost more than the slimmed layer.
        ranks: (K,) int64, ascending.
        ranks_in: (K,) int64, what goes with each of three factors; else None.
        macs: (K,) int64.
    """

    spec: LayerSpec
    form: Form
    has_bias: bool
    layer_macs: int
    most_macs: int
    ranks: NDArray[np.int64]
    ranks_in: NDArray[np.int64] | None
    macs: NDArray[np.int64]

    def setting(self, method: Method, index: int) -> Setting:
        """What stands at an index."""
        rank_in = None if self.ranks_in is None else int(self.ranks_in[index])
        return Setting(method=method, form=self.form, rank=int(self.ranks[index]), rank_in=rank_in)

    def count_within(self, macs: int) -> int:
        """How many of the ranks cost no more than that."""
        return int(np.searchsorted(self.macs, macs, side="right"))

    @property
    def top(self) -> int:
        """The largest rank that costs no more than the layer; 0 where none does."""
        count = self.count_within(self.most_macs)
        return int(self.ranks[count - 1]) if count else 0


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
            x})``, both with an optional "form"; or a setting. Of three factors ``"rank": [r_in, r]`` gives
            both ranks.
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
    carries = pair_has_bias(spec, plan_has_bias=has_bias)
    paths = {curve.form: curve for curve in curves if curve.layer == name and curve.method == request.method}
    ladders = [_ladder(whole, spec, form, paths.get(form), has_bias=carries) for form in forms]
    found = [_rounded(ladder, request, multiple) for ladder in ladders]
    preferred = current.form if current is not None and current.method == request.method else None

    def preference(setting: Setting) -> tuple[float, bool, int, int]:
        damage = damage_at(curves, name, setting)
        macs = setting_cost(spec, setting, has_bias=carries).macs
        order = forms.index(setting.form)
        return float("inf") if damage is None else damage, setting.form != preferred, macs, order

    possible = [setting for setting in found if setting is not None]
    if not possible:
        raise RankError(_why_none(whole, spec, request, multiple, ladders))
    return min(possible, key=preference)


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
            damage = curve.damage_of(setting)
            if damage is not None:
                return damage
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
        typed = (typed.method, {"rank": typed.ranks, "form": typed.form})
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
        given = amount["rank"]
        several = given if isinstance(given, list | tuple) else [given]
        if len(several) not in _RANK_COUNTS:
            raise OptionError(
                f'layer {name!r}: {len(several)} ranks; give e.g. {{"rank": 32}}, or {{"rank": [16, 32]}} of '
                "three factors"
            )
        return _PairRequest(method, form, tuple(_read_rank(name, rank) for rank in several), None)
    ratio = read_ratio(
        f"layer {name!r}", amount["ratio"], of="the layer's MACs", instead='{"rank": 32} for a rank'
    )
    return _PairRequest(method, form, (), ratio)


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


def _ladder(whole: LayerSpec, spec: LayerSpec, form: Form, path: Curve | None, *, has_bias: bool) -> _Ladder:
    """Every rank of a form; what goes with each of three factors as a curve has it, else as usual."""
    ranks = np.arange(1, max_rank(spec, form) + 1, dtype=np.int64)
    ranks_in = usual_ranks_in(spec, form, ranks)
    if ranks_in is not None and path is not None and path.ranks_in is not None and len(path.ranks):
        # A curve ends where nothing is saved any more.
        there = ranks <= path.ranks[-1]
        index = np.searchsorted(path.ranks, ranks[there])
        measured = np.concatenate([path.ranks_in[index], np.maximum(ranks_in[~there], path.ranks_in[-1])])
        ranks_in = np.clip(measured, *ranks_in_range(spec, form, ranks))
    macs, _ = pair_costs(spec, form, ranks, ranks_in, has_bias=has_bias)
    return _Ladder(
        spec=spec,
        form=form,
        has_bias=has_bias,
        layer_macs=layer_cost(whole).macs,
        # A slimmed layer is left without a pair rather than with one that costs the same.
        most_macs=layer_cost(spec).macs - (spec is not whole),
        ranks=ranks,
        ranks_in=ranks_in,
        macs=macs,
    )


def _at_multiples(ladder: _Ladder, multiple: int) -> _Ladder:
    """The ranks of a ladder that are multiples, with the least multiple that is enough between the others."""
    good, ranks_in = ranks_at(ladder.spec, ladder.form, ladder.ranks, ladder.ranks_in, multiple)
    ranks = ladder.ranks[good]
    macs, _ = pair_costs(ladder.spec, ladder.form, ranks, ranks_in, has_bias=ladder.has_bias)
    return replace(ladder, ranks=ranks, ranks_in=ranks_in, macs=macs)


def _rounded(ladder: _Ladder, request: _PairRequest, multiple: int) -> Setting | None:
    """What one form makes of a request, ranks rounded; None where it cannot be reached."""
    steps = _at_multiples(ladder, multiple)
    if len(request.ranks) > 1:
        return _both_ranks(ladder, request, multiple)
    if request.ranks:
        rank = -(-request.ranks[0] // multiple) * multiple
        index = int(np.searchsorted(steps.ranks, rank))
        is_there = rank <= steps.top and int(steps.ranks[index]) == rank
        return steps.setting(request.method, index) if is_there else None
    if request.ratio is None or not ladder.macs.any():
        return None
    most = ladder.count_within(floor(request.ratio * ladder.layer_macs * (1 + RATIO_SLACK)))
    if not most or not steps.top or ladder.ranks[most - 1] > ladder.top:
        # Above the top only where the layer is slimmed: the share is of what it cost before.
        return None
    index = int(np.searchsorted(steps.ranks, ladder.ranks[most - 1]))
    return steps.setting(request.method, min(index, int(np.searchsorted(steps.ranks, steps.top))))


def _both_ranks(ladder: _Ladder, request: _PairRequest, multiple: int) -> Setting | None:
    rank_in, rank = (-(-rank // multiple) * multiple for rank in request.ranks)
    setting = Setting(method=request.method, form=ladder.form, rank=rank, rank_in=rank_in)
    if ladder.ranks_in is None or rank_problem(ladder.spec, setting) is not None:
        return None
    macs = setting_cost(ladder.spec, setting, has_bias=ladder.has_bias).macs
    return setting if macs <= ladder.most_macs else None


def _why_none(
    whole: LayerSpec, spec: LayerSpec, request: _PairRequest, multiple: int, ladders: Sequence[_Ladder]
) -> str:
    """The message for a request that no form can meet."""
    best = max(ladders, key=lambda ladder: ladder.top)
    least_macs = min(int(ladder.macs[0]) for ladder in ladders)
    steps = [_at_multiples(ladder, multiple) for ladder in ladders]
    where = f"layer {spec.name!r}: {request.method} "
    layer = "layer" if spec is whole else "slimmed layer"
    if best.top < 1:
        return where + f"costs more MACs than the {layer} at every rank; drop the layer from the plan"
    if not any(ladder.top for ladder in steps):
        return (
            f"{where}has ranks 1..{best.top} that save MACs, and none is a multiple of {multiple}; "
            f"lower multiple_of for this layer or drop it from the plan"
        )
    if request.ranks:
        why = _why_not_ranks(best, request, multiple, max(ladder.top for ladder in steps), layer)
        return f"{where}{why} or drop the layer from the plan"
    layer_macs = best.layer_macs
    if not least_macs:
        return (
            where + 'has no ratio, since the layer is never called; give {"rank": r} or drop it from the plan'
        )
    smallest = least_macs / layer_macs
    if spec is not whole and float(request.ratio or 0) >= smallest:
        # At the largest multiple, so that what is named here is accepted.
        most_macs = max(
            int(ladder.macs[ladder.count_within(ladder.most_macs) - 1]) for ladder in steps if ladder.top
        )
        largest = most_macs / layer_macs
        return (
            f"{where}ratio {float(request.ratio or 0):g} is of the layer before slimming, and there the pair "
            f"would cost more MACs than the slimmed layer; give at most {floor(largest * 1e4) / 1e4:g} or "
            "drop the layer from the plan"
        )
    return (
        f"{where}ratio {float(request.ratio or 0):g} is below the smallest reachable one, "
        f"{ceil(smallest * 1e4) / 1e4:g} at rank 1; raise it or drop the layer from the plan"
    )


def _why_not_ranks(ladder: _Ladder, request: _PairRequest, multiple: int, top: int, layer: str) -> str:
    *before, rank = (-(-rank // multiple) * multiple for rank in request.ranks)
    if not before:
        rounded = f" (rounded up to {rank}, a multiple of {multiple})" if rank != request.ranks[0] else ""
        why = (
            f"the {layer} has no such rank"
            if rank > max_rank(ladder.spec, ladder.form)
            else f"the pair would cost more MACs than the {layer}"
        )
        return f"rank {request.ranks[0]}{rounded} is outside {multiple}..{top}: {why}; lower it"
    if ladder.ranks_in is None:
        return f'takes one rank, not {len(request.ranks)}; give {{"rank": {rank}}}'
    setting = Setting(method=request.method, form=ladder.form, rank=rank, rank_in=before[0])
    why = rank_problem(ladder.spec, setting) or f"the three factors would cost more MACs than the {layer}"
    return f"ranks {setting.rank_text}: {why}; change them"
