# SPDX-License-Identifier: Apache-2.0
"""What was asked for, checked."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import floor
from numbers import Real

from slimrank._errors import BudgetError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank.records import METRICS, Cost, Metric


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


def check_budgets(budgets: Mapping[Metric, float]) -> dict[Metric, float]:
    """Budgets as plain floats.

    Args:
        budgets: metric -> keep ratio in (0, 1].

    Returns:
        The same, in the same order.

    Raises:
        BudgetError: none given, or one that is no keep ratio.
        UnknownNameError: no such metric.
    """
    if not budgets:
        raise BudgetError("budget: none given; give at least one keep ratio, e.g. macs=0.5")
    checked: dict[Metric, float] = {}
    for name, ratio in budgets.items():
        metric = check_metric(name)
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 < float(ratio) <= 1:
            raise BudgetError(
                f"budget: {metric}={ratio!r} is no keep ratio (cost after / cost before) in (0, 1]; "
                f"give e.g. {metric}=0.5 to keep half"
            )
        checked[metric] = float(ratio)
    return checked


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
