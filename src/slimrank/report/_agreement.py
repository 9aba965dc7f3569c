# SPDX-License-Identifier: Apache-2.0
"""How far outputs agree with the original's, in words and tables."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from types import MappingProxyType

from slimrank.records import Agreement, OutputAgreement, Summary, element_at
from slimrank.report._numbers import format_cosine, format_damage, format_share, format_short
from slimrank.report._words import shape_text

# Unit of the divergence of one output by how it is read: of the sum, and as short as a table has it.
_UNITS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "categorical": ("nats per sample", "nats"),
        "bernoulli": ("nats per sample", "nats"),
        "gaussian": ("relative squared error", "relative"),
    }
)
# Dimensions of a sample from which on it is a map, whose elements are channels.
_MAP_DIMENSIONS = 3
# What stands for an output without a path: that of a model which returns one tensor.
_ONLY = "(output)"


def agreement_text(agreement: Agreement, *, brief: bool = False) -> str:
    """An agreement in one line, means over its outputs.

    Args:
        agreement: of a result.
        brief: fewer digits, and with the word "agreement" where it would not be clear.

    Returns:
        "98.91 % same top-1", "cosine 0.9981, relative error 0.064", or both with a semicolon between; brief
        "agreement 98.9 % top-1", "cosine 0.998, relative error 0.064".
    """
    parts = []
    if agreement.top1 is not None:
        share = format_share(agreement.top1, digits=1 if brief else 2)
        parts.append(f"agreement {share} top-1" if brief else f"{share} same top-1")
    if agreement.cosine is not None:
        parts.append(f"cosine {format_cosine(agreement.cosine, digits=3 if brief else 4)}")
        if agreement.relative_error is not None:
            parts[-1] += f", relative error {format_short(agreement.relative_error)}"
    return (", " if brief else "; ").join(parts)


def divergence_text(summary: Summary) -> str:
    """The divergence of a result with its unit; of one output with several positions also per position."""
    if summary.divergence is None:
        return "not measured"
    text = f"{format_damage(summary.divergence)} {summary.unit}"
    outputs = [] if summary.agreement is None else list(summary.agreement.values())
    # A loss of the caller's is no sum over positions.
    if len(outputs) == 1 and summary.unit == output_unit(outputs[0]):
        per_position = _per_position(summary.divergence, outputs[0].positions)
        text += f", {per_position[0]} per position ({per_position[1]})" if per_position else ""
    return text


def agreement_lines(summary: Summary) -> list[tuple[str, str]]:
    """What is told of the agreement of a result: label and text; none where it was not measured.

    Of one output the element that agrees least is told as well.
    """
    agreement = summary.agreement
    if agreement is None or not agreement:
        return []
    if len(agreement) > 1:
        label = f"Held-out agreement, mean over {len(agreement)} outputs"
        return [(label, agreement_text(agreement))]
    (output,) = agreement.values()
    text, worst = agreement_text(agreement), _worst_text(output)
    if worst:
        text += f", {'largest error' if output.top1 is None else 'lowest'} {worst}"
    return [("Held-out agreement", text)]


def output_table(agreement: Agreement) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each output; columns that would be empty are left out.

    Args:
        agreement: of a result.

    Returns:
        Headings, ``>`` before those of columns that are aligned right, and the rows.
    """
    columns = (
        *("output", "shape", "read as", ">weight", ">divergence", ">per position", ">same top-1"),
        *(">cosine", ">relative error", "worst"),
    )
    has_weights = any(output.weight != 1 for output in agreement.values())
    rows = [_output_row(path, output, has_weights=has_weights) for path, output in agreement.items()]
    is_shown = [any(cells) for cells in zip(*rows, strict=True)]

    def shown(cells: Sequence[str], blank: str) -> tuple[str, ...]:
        return tuple(cell or blank for cell, is_kept in zip(cells, is_shown, strict=True) if is_kept)

    return shown(columns, ""), [shown(row, "-") for row in rows]


def output_unit(output: OutputAgreement) -> str:
    """Unit of the divergence of one output."""
    return _UNITS[output.family][0]


def output_name(path: str) -> str:
    """The path of an output; "(output)" for the only one of a model that returns a tensor."""
    return path or _ONLY


def has_elements(agreement: Agreement) -> bool:
    """Whether an output has several elements that are told one by one."""
    return any(len(output.by_element) > 1 for output in agreement.values())


def element_lists(
    agreement: Agreement, *, all_up_to: int, most: int
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Elements of each output that has several: all of them in order, or those that agree least.

    Args:
        agreement: of a result.
        all_up_to: number of elements up to which all are listed.
        most: number of those that agree least where there are more.

    Yields:
        A heading, and pairs of the element and its share of equal classes or its relative error.
    """
    for path, output in agreement.items():
        count = len(output.by_element)
        if count < 2:
            continue
        figure = "relative error of" if output.top1 is None else "same top-1 at"
        name, heading = output_name(path), f"{figure} each {_element_word(output)}"
        indices = list(range(count))
        if count > all_up_to:
            values = output.by_element if output.top1 is not None else [-value for value in output.by_element]
            indices = sorted(indices, key=lambda index: values[index])[:most]
            heading = f"{figure} the {most} {_element_word(output)}s of {count} that agree least"
        yield (
            f"{name}: {heading}",
            [
                (
                    _index_text(output, element_at(index, output.elements)),
                    _figure_text(output, output.by_element[index]),
                )
                for index in indices
            ],
        )


def _output_row(path: str, output: OutputAgreement, *, has_weights: bool) -> tuple[str, ...]:
    per_position = _per_position(output.divergence, output.positions)
    return (
        output_name(path),
        shape_text(output.shape),
        output.family,
        f"{output.weight:g}" if has_weights else "",
        f"{format_damage(output.divergence)} {_UNITS[output.family][1]}",
        f"{per_position[0]} ({per_position[1]})" if per_position else "",
        "" if output.top1 is None else format_share(output.top1, digits=2),
        "" if output.cosine is None else format_cosine(output.cosine, digits=4),
        "" if output.relative_error is None else format_short(output.relative_error),
        _worst_text(output),
    )


def _per_position(divergence: float, positions: int) -> tuple[str, int] | None:
    """Divergence of one position, and how many there are; None where there is one, or nothing is known."""
    if positions < 2 or not isfinite(divergence):
        return None
    return format_short(divergence / positions), positions


def _worst_text(output: OutputAgreement) -> str:
    """The element that agrees least, such as "91.2 % at position 17"; "" where all are equal."""
    if output.worst is None or min(output.by_element) == max(output.by_element):
        return ""
    worst = (max if output.top1 is None else min)(output.by_element)
    return f"{_figure_text(output, worst)} at {_element_word(output)} {_index_text(output, output.worst)}"


def _element_word(output: OutputAgreement) -> str:
    if output.top1 is not None:
        return "position"
    # Of maps the channels are told, which are one dimension of three or more.
    is_map = len(output.elements) == 1 and len(output.shape) >= _MAP_DIMENSIONS
    return "channel" if is_map else "element"


def _figure_text(output: OutputAgreement, value: float) -> str:
    return format_short(value) if output.top1 is None else format_share(value, digits=1)


def _index_text(output: OutputAgreement, index: Sequence[int]) -> str:
    """An index, in brackets but for a channel or a position of a sequence: "17", "[3]", "[3, 4]"."""
    text = ", ".join(map(str, index))
    return text if len(index) == 1 and _element_word(output) != "element" else f"[{text}]"
