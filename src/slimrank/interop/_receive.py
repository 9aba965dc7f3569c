# SPDX-License-Identifier: Apache-2.0
"""From what a caller gave as a model to an ordinary module, by the table."""

import inspect
from dataclasses import dataclass

from torch import nn

from slimrank._errors import ModelError, OptionError
from slimrank._names import listed
from slimrank.interop._formats import FORMATS, Format
from slimrank.interop._kinds import class_name, is_kind
from slimrank.interop._unwrapped import unwrapped
from slimrank.records import Note

# Wrappers in wrappers, at most.
_MAX_WRAPPERS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Received:
    """A model as it is worked on.

    Attributes:
        model: the caller's own, or what was in a wrapper, or a copy without what stood in the way.
        notes: what was done to it.
    """

    model: nn.Module
    notes: tuple[Note, ...] = ()


def receive(given: object, *, to_export: bool = False, needs_weights: bool = True) -> Received:
    """What a caller gave as a model, made an ordinary module.

    Args:
        given: by the caller; it is not changed.
        to_export: it is only written to a file.
        needs_weights: the numbers in the weights matter.

    Returns:
        The module, and what was done.

    Raises:
        OptionError: it is no module, and nothing that is known.
        ModelError: a format that cannot be compressed; the message has its class, and what to do instead.
    """
    rows: list[Format] = []
    thing = given
    for _ in range(_MAX_WRAPPERS):
        row = next((row for row in FORMATS if row.place != "parameter" and row.is_it(thing)), None)
        if row is None:
            break
        _refuse(row, thing, "", to_export=to_export)
        if row.unwrap is None or not isinstance(thing, nn.Module):
            break
        thing = row.unwrap(thing)
        rows.append(row)
    if not isinstance(thing, nn.Module):
        raise OptionError(f"model is a {type(thing).__name__}; give a torch.nn.Module")
    _check_inside(thing, to_export=to_export)
    model, undone = unwrapped(thing)
    _check_weights(model, is_hooked=any(row.change for row in undone), needs_weights=needs_weights)
    texts = dict.fromkeys(row.note for row in (*rows, *undone))
    return Received(model=model, notes=tuple(Note(where="model", text=text) for text in texts))


def _check_inside(model: nn.Module, *, to_export: bool) -> None:
    """Refuses modules and weights that cannot be compressed, wherever they are."""
    refused = [row for row in FORMATS if row.cure is not None]
    for name, module in model.named_modules():
        for row in refused:
            if row.place == "module" and row.is_it(module):
                _refuse(row, module, name, to_export=to_export)
        for key, parameter in module._parameters.items():
            for row in refused:
                if row.place == "parameter" and row.is_it(parameter):
                    _refuse(row, parameter, f"{name}.{key}".removeprefix("."), to_export=to_export)


def _refuse(row: Format, thing: object, name: str, *, to_export: bool) -> None:
    if row.cure is None or (row.can_export and to_export):
        return
    cure = row.cure if isinstance(row.cure, str) else row.cure(thing)
    if isinstance(thing, str):
        seen = repr(thing)
    elif inspect.isclass(thing):
        seen = f"the class {thing.__module__}.{thing.__qualname__}"
    else:
        seen = f"a {class_name(thing)}"
    raise ModelError(f"model{f': {name!r}' if name else ''} is {seen} ({row.name}): {cure}")


def _check_weights(model: nn.Module, *, is_hooked: bool, needs_weights: bool) -> None:
    """Refuses weights that are nowhere, are spread over processes, or over devices that hooks connected."""
    weights = dict(model.named_parameters())
    nowhere = [name for name, weight in weights.items() if weight.is_meta]
    if nowhere and needs_weights:
        raise ModelError(
            f"model: {listed(nowhere)} on the meta device, without numbers; load the model with its weights, "
            "such as from_pretrained(path) without device_map=, or load_state_dict(weights, assign=True)"
        )
    spread = [name for name, weight in weights.items() if is_kind(weight, r"torch\.distributed\.tensor\.")]
    if spread:
        raise ModelError(
            f"model: {listed(spread)} spread over processes (tensor parallel); give a model with whole "
            "weights, each of them weight.full_tensor()"
        )
    devices = sorted({str(weight.device) for weight in weights.values()})
    if is_hooked and len(devices) > 1 and needs_weights:
        raise ModelError(
            f"model: without the hooks of accelerate its weights lie on {', '.join(devices)}; load it onto "
            "one device, such as from_pretrained(path, device_map={'': 'cpu'})"
        )
