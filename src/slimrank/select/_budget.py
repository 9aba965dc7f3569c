# SPDX-License-Identifier: Apache-2.0
"""What was asked for, checked."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import floor, nextafter

from slimrank._errors import BudgetError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank._numbers import real_number
from slimrank.records import METRICS, Cost, Metric, NetworkTimes


def check_metric(metric: str) -> Metric:
    """The metric of this name.

    Args:
        metric: "macs", "params" or "bytes".

    Returns:
        The same name.

    Raises:
        UnknownNameError: no such metric.
    """
    for known in METRICS:
        if known == metric:
            return known
    raise UnknownNameError(f"budget: metric {metric!r} does not exist; {nearest(str(metric), METRICS)}")


def check_budgets(
    budgets: Mapping[Metric, float | None], *, who: str = "a plan", only_one: bool = False
) -> dict[Metric, float]:
    """Budgets as plain floats: the one check behind every call that takes them.

    Args:
        budgets: metric -> keep ratio in (0, 1]; None for no such budget.
        who: what needs them, for the message.
        only_one: exactly one budget, below 1, as for something that shares it.

    Returns:
        Those that are given, in the same order.

    Raises:
        BudgetError: none given, too many, or one that is no keep ratio.
        UnknownNameError: no such metric.
    """
    given = {check_metric(name): ratio for name, ratio in budgets.items() if ratio is not None}
    if only_one and len(given) != 1:
        raise BudgetError(
            f"{who} needs exactly one budget, and {len(given)} are given; give macs=, params= or bytes= as a "
            "keep ratio, e.g. macs=0.5"
        )
    if not given:
        raise BudgetError(
            f"{who} needs a budget; give macs=, params= or bytes= as a keep ratio, e.g. macs=0.5"
        )
    found: dict[Metric, float] = {}
    for metric, ratio in given.items():
        number = real_number(ratio)
        if number is None or not 0 < number <= 1 or (only_one and number == 1):
            raise BudgetError(
                f"budget: {metric}={ratio!r} is no keep ratio (cost after / cost before) in "
                f"{'(0, 1)' if only_one else '(0, 1]'}; give e.g. {metric}=0.5 to keep half"
            )
        found[metric] = number
    return found


def cost_limit(before: Cost, metric: Metric, ratio: float) -> int:
    """The largest cost that a budget allows.

    Args:
        before: cost of the whole model.
        metric: that the budget is for.
        ratio: keep ratio in (0, 1].

    Returns:
        A cost c with ``c <= ratio * before`` and ``c / before <= ratio``, both as floats.
    """
    whole = before.metric(metric)
    limit = floor(ratio * whole)
    while limit > 0 and limit / whole > ratio:
        limit -= 1
    return limit


def time_limit(times: NetworkTimes, ratio: float) -> float:
    """The longest time that a budget allows.

    Args:
        times: measured.
        ratio: keep ratio in (0, 1].

    Returns:
        ns t with ``t / reference <= ratio`` as floats.
    """
    limit = ratio * times.reference
    while limit > 0 and limit / times.reference > ratio:
        limit = nextafter(limit, 0.0)
    return limit


def check_methods(methods: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The methods that a plan may use.

    Args:
        methods: asked for; None for all known ones.
        known: methods that the study measured.

    Returns:
        The methods, in the order of the study.

    Raises:
        OptionError: no method, or one text instead of several.
        UnknownNameError: a method that the study did not measure.
    """
    if methods is None:
        return tuple(known)
    if isinstance(methods, str) or not methods:
        raise OptionError(
            f'methods: {methods!r} names no method; give a tuple, e.g. ("weight_svd",), or None for all'
        )
    for method in methods:
        if method not in known:
            raise UnknownNameError(
                f"methods: {method!r} was not measured by the study; {nearest(str(method), known)}"
            )
    return tuple(method for method in known if method in methods)


def check_skip(skip: Sequence[str], names: Iterable[str]) -> frozenset[str]:
    """The layers to leave alone.

    Args:
        skip: globs on dotted layer names.
        names: every layer.

    Returns:
        The names that match.

    Raises:
        OptionError: one text instead of several.
        UnknownNameError: a glob that matches nothing.
    """
    if isinstance(skip, str):
        raise OptionError(f"skip: {skip!r} is one text; give a tuple of globs, e.g. ({skip!r},)")
    known = tuple(names)
    matched: set[str] = set()
    for pattern in skip:
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise UnknownNameError(f"skip: {pattern!r} matches no layer; {nearest(str(pattern), known)}")
        matched |= found
    return frozenset(matched)
