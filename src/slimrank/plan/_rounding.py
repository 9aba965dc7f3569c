# SPDX-License-Identifier: Apache-2.0
"""What ranks and widths are multiples of: numbers as given, or what runtimes compute at full speed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd, lcm
from typing import Literal

import numpy as np

from slimrank._errors import OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank._numbers import whole_number
from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_costs, usual_ranks_in
from slimrank.plan._step import slimmable_groups
from slimrank.plan._structure import Structure, names_of
from slimrank.records import GroupSpec, LayerSpec, Setting

AUTO: Literal["auto"] = "auto"
# What a caller may give. Mappings are name glob -> number or "auto"; the first match wins.
MultipleOf = int | Literal["auto"] | Mapping[str, int | Literal["auto"]]
# The same without "auto": what was used.
Multiples = int | Mapping[str, int]

# The numbers that "auto" chooses from, the largest first. Each divides those before it, so that a lower one
# only adds choices. Float kernels compute 16 channels at a time on AVX-512, 8 or 4 on narrower vectors; int8
# kernels 4 to 16.
_NUMBERS = (16, 8, 4, 1)
# What a layer can keep must hold at least so many multiples of a number. Measured on 64 channels in
# onnxruntime, 52 to 60 cost what 64 cost, and 36 to 44 what 48 cost; on 256 channels one step of 16 is a
# sixteenth, and time follows MACs within 0.05. So 16 pays everywhere, but costs accuracy where it leaves few
# choices: asked of 64 and more, in place of 128, it loses a MobileNetV2 of 16 to 128 channels 0.8 points more
# at a quarter of its MACs, and takes 0.02 off its time.
_MIN_COUNT = {16: 8, 8: 4, 4: 4, 1: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What ranks and widths are multiples of.

    The first producer of a group of channels gives the group its name, and may be narrow where the group is
    wide, so the two have numbers of their own.

    Attributes:
        ranks: of layers: a number, or name glob -> number, first match wins.
        widths: of groups, in outputs of their first producers: likewise.
    """

    ranks: Multiples
    widths: Multiples


def check_multiple_of(multiple_of: MultipleOf, names: Iterable[str] | None) -> None:
    """Check a rank rounding against the layers of a model.

    Args:
        multiple_of: at least 1, or "auto"; or layer-name glob -> one of these.
        names: layers of the model; None to check the numbers alone.

    Raises:
        OptionError: neither a whole number of at least 1 nor "auto".
        UnknownNameError: a glob that no layer matches.
    """
    known = None if names is None else tuple(names)
    # An empty pattern stands for the number without a glob.
    entries = dict(multiple_of) if isinstance(multiple_of, Mapping) else {"": multiple_of}
    for pattern, number in entries.items():
        where = f"multiple_of[{pattern!r}]" if pattern else "multiple_of"
        if (whole_number(number) or 0) < 1 and not _is_auto(number):
            close = f"; {nearest(number, (AUTO,))}" if isinstance(number, str) else ""
            raise OptionError(
                f'{where} is {number!r}; give a whole number of at least 1, e.g. 8, or "auto"{close}'
            )
        if known is not None and pattern and not any(_matches(name, pattern) for name in known):
            raise UnknownNameError(f"{where} matches no layer; {nearest(pattern, known)}")


def multiple_for(multiples: Multiples, name: str) -> int:
    """The number that the ranks of one layer, or the width of one group, are multiples of.

    Args:
        multiples: a number, or name glob -> number; the first match wins.
        name: dotted layer name, or name of the group.

    Returns:
        At least 1; 1 where no glob matches.
    """
    if not isinstance(multiples, Mapping):
        return int(multiples)
    if isinstance(multiples, _ByName):
        return multiples.get(name, 1)
    return next((int(number) for glob, number in multiples.items() if _matches(name, glob)), 1)


class _ByName(dict[str, int]):
    """Multiples by whole names, none of which is a glob: looked up instead of compared."""


def rounding_steps(
    multiple_of: MultipleOf, structure: Structure, *, step: int | None = None
) -> tuple[Rounding, ...]:
    """The numbers to plan with: first by the rule of "auto", then lower ones, for budgets out of reach.

    Args:
        multiple_of: as a caller gave it, checked.
        structure: of the model.
        step: where times are stairs, ranks and widths at which they are known are multiples of this: "auto"
            means it, and other numbers are raised to multiples of it. None where no times matter.

    Returns:
        One rounding where no "auto" is used, or with a step. Else the largest numbers of each are lower than
        in the one before, and in the last "auto" is 1.
    """
    multiple_of = _as_ints(multiple_of)
    if step is not None:
        # Below a step a rank costs what the step costs: lower numbers would only seem to be faster.
        multiple_of = _raised(multiple_of, step)
    if not has_auto(multiple_of):
        numbers: Multiples = multiple_of  # type: ignore[assignment]
        held = {} if step is None else kernel_group_steps(structure, step)
        widths = numbers if not held else _held_to(numbers, held, structure)
        return (Rounding(ranks=numbers, widths=widths),)
    ranks = {
        name: _asked_for(multiple_of, name, rank_multiple(spec))
        for name, spec in _layers_with_pairs(structure).items()
    }
    by_group = {
        name: _asked_for(multiple_of, name, width_multiple(group))
        for name, group in slimmable_groups(structure.channels).items()
    }
    steps = [
        Rounding(
            ranks=_ByName(
                {name: _at_most(multiple_of, name, number, most) for name, number in ranks.items()}
            ),
            widths=_ByName(
                {name: _at_most(multiple_of, name, number, most) for name, number in by_group.items()}
            ),
        )
        for most in _NUMBERS
    ]
    # Twice the same would only be tried in vain.
    return tuple(step for index, step in enumerate(steps) if step not in steps[:index])


def kernel_group_steps(structure: Structure, step: int) -> dict[str, int]:
    """What widths must be multiples of where kernels compute the groups of a grouped convolution one by one.

    A step holds for what one kernel computes: 12 of 16 channels in each of 4 groups are 48, a multiple of 16,
    and yet take longer than all 64 in onnxruntime, whose fast kernel wants whole steps in every group.

    Args:
        structure: of the model.
        step: of the hardware's stairs.

    Returns:
        Group of channels -> the number, in outputs of its first producer; those alone that narrow every group
        of a convolution whose groups are whole steps wide as it stands.
    """
    slimmable = slimmable_groups(structure.channels)
    found: dict[str, int] = {}
    for name, spec in structure.layers.items():
        tensor = structure.channels.tensors.get(f"{name}.weight")
        if tensor is None or spec.groups == 1 or spec.is_transposed:
            continue
        # Of one group: its outputs and its inputs.
        sizes = (spec.weight_shape[0] // spec.groups, spec.weight_shape[1])
        if any(size % step for size in sizes):
            continue
        for axis in tensor.axes:
            if axis.dim > 1 or axis.group not in slimmable:
                continue
            units = axis.units[: sizes[axis.dim]]
            if axis.dim == 0 and set(units) != set(axis.units):
                # Groups go as wholes.
                continue
            group = slimmable[axis.group]
            of_each = max(len(units) // group.units, 1)
            number = lcm(step, group.unit_width * (step // gcd(step, of_each)))
            found[axis.group] = lcm(found.get(axis.group, 1), number)
    return found


def _held_to(multiples: Multiples, held: Mapping[str, int], structure: Structure) -> Multiples:
    """Multiples of groups, some of which have numbers of their own beside."""
    return _ByName(
        {
            name: lcm(multiple_for(multiples, name), held.get(name, 1))
            for name in slimmable_groups(structure.channels)
        }
    )


def _raised(multiple_of: MultipleOf, step: int) -> Multiples:
    """Multiples of a step, for every layer."""
    entries = dict(multiple_of) if isinstance(multiple_of, Mapping) else {"*": multiple_of}
    raised = {glob: step if _is_auto(number) else lcm(int(number), step) for glob, number in entries.items()}
    # What no glob matches takes any multiple of the step.
    return next(iter(raised.values())) if not isinstance(multiple_of, Mapping) else {**raised, "*": step}


def rank_multiple(spec: LayerSpec) -> int:
    """What the rule of "auto" makes the ranks of a layer multiples of.

    Args:
        spec: the layer.

    Returns:
        16, 8, 4 or 1: by the highest rank that saves MACs in any form.
    """
    tops = [0]
    for method in FORMS:
        for form in forms_of(spec, method) if method in spec.methods else ():
            ranks = np.arange(1, max_rank(spec, form) + 1)
            macs, _ = pair_costs(spec, form, ranks, usual_ranks_in(spec, form, ranks), has_bias=False)
            # A layer that is never called has no MACs: every rank is as cheap.
            tops.append(int(np.searchsorted(macs, layer_cost(spec).macs, side="right")))
    return _largest_number(max(tops), 1)


def width_multiple(group: GroupSpec) -> int:
    """What the rule of "auto" makes the width of a group a multiple of.

    Args:
        group: of channels; a unit of it, such as a head, goes as a whole.

    Returns:
        16, 8, 4 or 1; outputs of the first producer.
    """
    return _largest_number(group.units * group.unit_width, group.unit_width)


def used_multiples(
    rounding: Rounding,
    rule: Rounding,
    structure: Structure,
    settings: Mapping[str, Setting],
    groups: Mapping[str, Sequence[int]],
) -> tuple[Multiples, tuple[str, ...]]:
    """What a plan with "auto" says of its multiples.

    Args:
        rounding: that it was made with.
        rule: what "auto" would take.
        structure: of the model.
        settings: of the plan, layer -> setting.
        groups: of the plan, group -> units that stay.

    Returns:
        The number of each layer and group, or one number where it is the same for all; and the names whose
        rank or width is no multiple by the rule. Where a layer and a group share a name, the number is that
        of what the plan does to them; where it is both or nothing, one that divides the two.
    """
    layers = _layers_with_pairs(structure)
    widths = slimmable_groups(structure.channels)
    found: dict[str, int] = {}
    relaxed = []
    for name in names_of(structure):
        numbers, by_rule = [], []
        if name in layers and (name in settings or name not in groups):
            ranks = settings[name].ranks if name in settings else (0,)
            numbers.append(gcd(multiple_for(rounding.ranks, name), *ranks))
            by_rule.append(all(rank % multiple_for(rule.ranks, name) == 0 for rank in ranks))
        if name in widths and (name in groups or name not in settings):
            outputs = len(groups.get(name, ())) * widths[name].unit_width
            numbers.append(gcd(multiple_for(rounding.widths, name), outputs))
            by_rule.append(outputs % multiple_for(rule.widths, name) == 0)
        if numbers:
            found[name] = gcd(*numbers)
        if not all(by_rule):
            relaxed.append(name)
    if len(set(found.values())) <= 1:
        return next(iter(found.values()), 1), tuple(relaxed)
    return found, tuple(relaxed)


def _layers_with_pairs(structure: Structure) -> dict[str, LayerSpec]:
    """The layers that a pair can replace."""
    return {
        name: spec
        for name, spec in structure.layers.items()
        if any(forms_of(spec, method) for method in FORMS if method in spec.methods)
    }


def has_auto(multiple_of: MultipleOf) -> bool:
    """Whether any number is left to the rule."""
    numbers = multiple_of.values() if isinstance(multiple_of, Mapping) else (multiple_of,)
    return any(_is_auto(number) for number in numbers)


def without_auto(multiple_of: MultipleOf) -> Multiples:
    """The same with 1 in place of "auto"."""
    multiple_of = _as_ints(multiple_of)
    if not isinstance(multiple_of, Mapping):
        return 1 if multiple_of == AUTO else multiple_of
    return {glob: 1 if number == AUTO else number for glob, number in multiple_of.items()}


def _as_ints(multiple_of: MultipleOf) -> MultipleOf:
    """The same with Python's own whole numbers, which a file can hold."""

    def as_int(number: int | Literal["auto"]) -> int | Literal["auto"]:
        whole = whole_number(number)
        return number if whole is None else whole

    if isinstance(multiple_of, _ByName):
        return multiple_of
    if isinstance(multiple_of, Mapping):
        return {glob: as_int(number) for glob, number in multiple_of.items()}
    return as_int(multiple_of)


def _is_auto(number: object) -> bool:
    # An array or the like answers == with another one.
    return isinstance(number, str) and number == AUTO


def _matches(name: str, glob: str) -> bool:
    # A name may hold brackets, which a glob reads as a choice of letters.
    return name == glob or fnmatchcase(name, glob)


def _given(multiple_of: MultipleOf, name: str) -> int | Literal["auto"]:
    """What the caller gave for a name; 1 where no glob matches."""
    if not isinstance(multiple_of, Mapping):
        return multiple_of
    return next((number for glob, number in multiple_of.items() if _matches(name, glob)), 1)


def _asked_for(multiple_of: MultipleOf, name: str, by_rule: int) -> int:
    number = _given(multiple_of, name)
    return by_rule if _is_auto(number) else int(number)


def _at_most(multiple_of: MultipleOf, name: str, number: int, most: int) -> int:
    """A number lowered, unless the caller gave it."""
    return min(number, most) if _is_auto(_given(multiple_of, name)) else number


def _largest_number(size: int, unit: int) -> int:
    """The largest number of which a size holds enough multiples that are whole units."""
    return next(
        number for number in _NUMBERS if number == 1 or lcm(number, unit) * _MIN_COUNT[number] <= size
    )
