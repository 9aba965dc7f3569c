# SPDX-License-Identifier: Apache-2.0
"""The words that text and page share."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from slimrank._names import listed
from slimrank.cost import matrix_tensor, slimmed_spec
from slimrank.plan import Plan, Step, is_inside, multiple_for
from slimrank.records import ChannelMap, LayerResult, LayerSpec, Metric, Note, Setting

# One place for each label, so that text and page say the same.
METRIC_LABELS: Mapping[Metric, str] = MappingProxyType(
    {"macs": "MACs", "params": "parameters", "bytes": "weight bytes"}
)
DIVERGENCE_LABEL = "Divergence from the original, measured on held-out samples"
DAMAGE_LABEL = "Damage predicted by the plan"
MULTIPLES_LABEL = "Rounding"
ELSEWHERE_LABEL = "(outside layers)"
# How the text of a layer in a dropped block begins; by it ``done_text`` knows such a layer.
_GONE = "gone with "
# A word, and the number that it ends in, if any.
_NUMBER_AT_END = re.compile(r"(.*?)(\d*)")
# Between both ends of a name that is too long even so.
_GAP = "..."
# What stands for the model itself, whose dotted name is empty.
_ROOT = "(model)"


def name_text(name: str) -> str:
    """A dotted name; "(model)" for the model itself, whose dotted name is empty."""
    return name or _ROOT


def short_name(name: str, width: int) -> str:
    """A dotted name within a width, with all of its numbers: they tell layers apart.

    Args:
        name: whole.
        width: letters, at least 3.

    Returns:
        "enco~.layers.11.self_att~.quer~": words lose their ends, the longest first, and the last word least.
        Where numbers and first letters alone are too long, both ends of the name around "...".
    """
    if len(name) <= width:
        return name
    words = [(match[1], match[2]) for part in name.split(".") if (match := _NUMBER_AT_END.fullmatch(part))]
    kept = [len(stem) for stem, _ in words]
    last = len(words) - 1

    def shown() -> str:
        return ".".join(
            stem + number if count == len(stem) else f"{stem[:count]}~{number}"
            for (stem, number), count in zip(words, kept, strict=True)
        )

    while len(text := shown()) > width:
        longest = max(range(len(words)), key=lambda index: kept[index] / (2 if index == last else 1))
        if kept[longest] <= 2:
            end = width - len(_GAP)
            return f"{name[: end // 2]}{_GAP}{name[len(name) - (end - end // 2) :]}"
        # A cut of one letter would put another one in its place.
        kept[longest] -= 2 if kept[longest] == len(words[longest][0]) else 1
    return text


def setting_text(setting: Setting | None) -> str:
    """Method and form of a setting ("spatial_svd v_h"); "left alone" for None."""
    if setting is None:
        return "left alone"
    return setting.method if setting.form == "linear" else f"{setting.method} {setting.form}"


def done_text(layer: LayerResult) -> str:
    """What was done to a layer: its setting, what became of its channels, or both; else "left alone"."""
    return done_of(layer.setting, layer.slimmed)


def done_of(setting: Setting | None, slimmed: str | None) -> str:
    """As ``done_text``, of a setting and of what became of channels."""
    if slimmed is None:
        return setting_text(setting)
    channels = slimmed if slimmed.startswith(_GONE) else f"channels {slimmed}"
    return channels if setting is None else f"{setting_text(setting)}, {channels}"


def is_left_alone(layer: LayerResult) -> bool:
    """Whether a layer was neither replaced by a pair nor lost channels."""
    return layer.setting is None and layer.slimmed is None


def slimmed_text(step: Step, spec: LayerSpec) -> str | None:
    """What becomes of the channels of a layer.

    Args:
        step: of a plan.
        spec: a layer of its structure.

    Returns:
        "64 -> 24 outputs, 64 -> 30 inputs"; "gone with layer2.1" in a dropped block; None where all stay.
    """
    block = next((name for name in step.dropped if is_inside(spec.name, (name,))), None)
    if block is not None:
        return f"{_GONE}{block}"
    channels = step.structure.channels
    after = slimmed_spec(spec, channels, step.groups)
    words = _side_by_dim(channels, spec)
    sizes = zip(words, spec.weight_shape, after.weight_shape, strict=False)
    parts = [f"{old} -> {new} {word}" for word, old, new in sizes if old != new]
    if not parts and after.params != spec.params:
        # Its parameters have other names than "weight", so no dimension of them is known as its outputs.
        parts = [f"{spec.params} -> {after.params} parameters"]
    return ", ".join(parts) or None


def _side_by_dim(channels: ChannelMap, spec: LayerSpec) -> tuple[str, ...]:
    """Which side of a layer each dimension of its weight is: transposed kernels have their inputs first."""
    weight = matrix_tensor(spec, channels)
    inputs = {axis.dim for axis in weight.axes if axis.role == "input"} if weight else set()
    made = "rows of gates" if spec.is_recurrent else "outputs"
    return tuple("inputs" if dim in inputs else made for dim in range(len(spec.weight_shape)))


def first_of(names: tuple[str, ...]) -> str:
    """The first name and how many more there are: "conv1 + 3 more"; "-" for none."""
    if not names:
        return "-"
    first = name_text(names[0])
    return first if len(names) == 1 else f"{first} + {len(names) - 1} more"


def counted(count: int, word: str) -> str:
    """A count with its word: "1 block", "2 blocks"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def warnings_and_others(notes: Iterable[Note]) -> tuple[list[Note], list[Note]]:
    """Notes that stand on top of everything, and those that are listed at the end."""
    split: tuple[list[Note], list[Note]] = ([], [])
    for note in notes:
        split[not note.is_warning].append(note)
    return split


def why_left(layer: LayerResult) -> str:
    """Why a layer without a setting was left alone."""
    return layer.reason or "not in the plan"


def why_not(spec: LayerSpec) -> str:
    """Why no method applies to a layer."""
    return spec.reason or "no method applies"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape without spaces: "64x3x7x7"; "-" for an empty one."""
    return "x".join(map(str, shape)) or "-"


def layers_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layers that share a reason, which is written once.

    Args:
        reasons: layer name to reason, in execution order.

    Returns:
        Pairs of the names, joined by commas, and their reason; in the order of the first layer of each.
    """
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name_text(name))
    return [(", ".join(names), reason) for reason, names in layers.items()]


def multiples_text(plan: Plan) -> str:
    """What the ranks and widths of a plan are multiples of; "" where nothing was asked for."""
    # A layer and its group may share a name.
    names = [*plan.settings, *plan.groups]
    counts = Counter(multiple_for(plan.multiple_of, name) for name in names)
    numbers = sorted(counts, reverse=True)
    is_auto = plan.relaxed is not None
    if not numbers or (numbers == [1] and not is_auto):
        return ""
    if len(numbers) == 1:
        text = f"multiples of {numbers[0]}" if numbers[0] > 1 else "any number"
    else:
        parts = [f"{number} ({counts[number]})" for number in numbers if number > 1]
        text = f"multiples of {', '.join(parts)}" + (f", any number ({counts[1]})" if 1 in counts else "")
    text = f"ranks and widths are {text}" + (" (auto)" if is_auto and len(numbers) == 1 else "")
    if is_auto and len(numbers) > 1:
        text += ", by the size of each layer (auto)"
    if plan.relaxed:
        text += f"; lower than the rule for {listed(plan.relaxed, 4)}"
    return text
