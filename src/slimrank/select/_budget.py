# SPDX-License-Identifier: Apache-2.0
"""What was asked for, checked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import floor, nextafter

from slimrank._errors import BudgetError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank._numbers import percent_ratio, quotes_hint, real_number, whole_number
from slimrank.cost import read_bytes
from slimrank.records import METRICS, Cost, Limited, Metric, NetworkTimes, PeakPoint

# What a number of each metric is, for people, and one as an example.
_UNITS: Mapping[Metric, str] = {"macs": "MACs", "params": "parameters", "bytes": "bytes"}
_NUMBERS: Mapping[Metric, str] = {
    "macs": "19_000_000",
    "params": "1_200_000",
    "bytes": '"2MB"',
}
# A whole number below this may have been meant as percent; as percent it would keep all.
_WHOLE_PERCENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be left of one metric: a share, or a number. One of the first two is None.

    Attributes:
        ratio: keep ratio in (0, 1].
        number: MACs, params or bytes, at least 1.
        words: what was asked for, where that was no plain ratio, such as "50%", "2MB" or "19_000_000".
    """

    ratio: float | None = None
    number: int | None = None
    words: str = ""

    def share(self, whole: float) -> float:
        """The keep ratio, of a model that costs this."""
        return self.ratio if self.ratio is not None else (self.number or 0) / max(whole, 1)

    def text(self, metric: Limited) -> str:
        """As it was asked for, for people."""
        return f"{name_of(metric)}={self.words or f'{self.ratio:g}'}"


def name_of(metric: Limited) -> str:
    """What a caller calls the budget."""
    return "activation_bytes" if isinstance(metric, PeakPoint) else metric


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
    budgets: Mapping[Metric, float | str | None], *, who: str = "a plan", only_one: bool = False
) -> dict[Metric, Budget]:
    """Budgets as values: the one check behind every call that takes them.

    Args:
        budgets: metric -> keep ratio in (0, 1] or a text such as "50%"; a whole number above 1 for so many
            MACs, params or bytes; of bytes also a text such as "2MB"; None for no such budget.
        who: what needs them, for the message.
        only_one: exactly one budget, below 1, as for something that shares it.

    Returns:
        Those that are given, in the same order.

    Raises:
        BudgetError: none given, too many, or one that is neither a keep ratio nor a number.
        UnknownNameError: no such metric.
    """
    given = {check_metric(name): asked for name, asked in budgets.items() if asked is not None}
    if only_one and len(given) != 1:
        raise BudgetError(
            f"{who} needs exactly one budget, and {len(given)} are given; give macs=, params= or bytes= as a "
            "keep ratio, e.g. macs=0.5"
        )
    if not given:
        raise BudgetError(
            f"{who} needs a budget; give macs=, params= or bytes= as a keep ratio, e.g. macs=0.5, or one of "
            "measured time or of memory: latency=, activation_bytes="
        )
    return {metric: _read(metric, asked, only_one=only_one) for metric, asked in given.items()}


def _read(metric: Metric, asked: object, *, only_one: bool, name: str = "") -> Budget:
    """One budget; ``name`` is that of its argument where it differs from the metric.

    Raises:
        BudgetError: neither a keep ratio nor a number.
    """
    name = name or metric
    whole, ratio, words = whole_number(asked), real_number(asked), ""
    # 1 is the ratio: a model of one MAC is none.
    if whole is not None and whole > 1:
        return Budget(number=whole, words=f"{whole:_}")
    if isinstance(asked, str):
        ratio, words = percent_ratio(asked), asked.strip()
        if ratio is None and metric == "bytes" and _is_size(asked):
            try:
                return Budget(number=read_bytes(asked, name), words=words)
            except OptionError as error:
                raise BudgetError(f"budget: {error}") from error
    if ratio is not None and 0 < ratio <= 1 and not (only_one and ratio == 1):
        return Budget(ratio=ratio, words=words)
    allowed = "(0, 1)" if only_one else "(0, 1]"
    raise BudgetError(
        f"budget: {name}={asked!r} is no keep ratio (cost after / cost before) in {allowed}; give e.g. "
        f'{name}=0.5 or {name}="50%" to keep half, or {name}={_NUMBERS[metric]} for so many {_UNITS[metric]} '
        f"at most{quotes_hint(asked, name)}"
    )


def _is_size(text: str) -> bool:
    """Whether a text was meant as a number with a unit."""
    return text.strip()[:1].isdecimal() and text.strip()[-1:].isalpha()


def meant_percent(budget: Budget, name: str) -> str:
    """What was perhaps meant by a number that is out of reach, to end a message with.

    Args:
        budget: asked for.
        name: what a caller calls it.

    Returns:
        A stop and a sentence; "" for a ratio, a size with its unit, or a number from 100 on.
    """
    words = budget.words
    if budget.number is None or not words.isdecimal() or int(words) >= _WHOLE_PERCENT:
        return ""
    unit = next((unit for metric, unit in _UNITS.items() if metric == name), _UNITS["bytes"])
    return f'. {name}={words} is a number of {unit}; for {words} % give {name}="{words}%"'


def check_below(budget: Budget, metric: Metric, now: int) -> None:
    """Refuses a number that the model does not even have.

    Args:
        budget: asked for.
        metric: that it is for.
        now: what the model costs.

    Raises:
        BudgetError: the model has less already.
    """
    if budget.number is not None and budget.number > now:
        raise BudgetError(
            f"budget: {budget.text(metric)} is above what the model costs: it has less already, {now:,} "
            f"{_UNITS[metric]}; give less, or leave this budget out"
        )


def limit_of(budget: Budget, metric: Metric, before: Cost) -> int:
    """The largest cost that a budget allows.

    Args:
        budget: asked for.
        metric: that it is for.
        before: cost that a keep ratio is a share of.

    Returns:
        MACs, params or bytes.
    """
    if budget.number is not None:
        return budget.number
    return cost_limit(before, metric, budget.share(before.metric(metric)))


def check_peak(asked: object) -> Budget:
    """What may be left of the peak of activations, as a value.

    Args:
        asked: as for other budgets; a whole number above 1, or a text such as "2MB", for so many bytes.

    Returns:
        The budget.

    Raises:
        BudgetError: neither a keep ratio nor a number of bytes.
    """
    return _read("bytes", asked, only_one=False, name="activation_bytes")


def bytes_limit(budget: Budget, peak: int) -> int:
    """The most bytes of activations that a budget allows.

    Args:
        budget: asked for.
        peak: of the model, which a keep ratio is a share of.

    Returns:
        Bytes.
    """
    if budget.number is not None:
        return budget.number
    return cost_limit(Cost(macs=0, params=0, bytes=peak), "bytes", budget.share(peak))


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
