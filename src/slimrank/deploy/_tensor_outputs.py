# SPDX-License-Identifier: Apache-2.0
"""Models that return tensors alone, and the names of what goes in and comes out."""

import inspect
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from slimrank._errors import OutputError
from slimrank._names import listed
from slimrank.forward import Batch, named_tensors

# What models of transformers return for their own next call.
_CACHES = frozenset({"past_key_values", "cache_params", "mems", "past_buckets_states"})


class TensorOutputs(nn.Module):
    """A model, with the tensors among its outputs in a tuple, or bare where there is one.

    Args:
        model: any module.
        names: of the tensors that come out, as ``output_tensors`` gives them.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        """Calls the model, and picks the tensors."""
        found = output_tensors(self.model(*args, **kwargs))
        tensors = tuple(tensor for name, tensor in found if name in self.names)
        return tensors[0] if len(tensors) == 1 else tensors


def returning_tensors(model: nn.Module, result: object) -> nn.Module:
    """The model itself where it returns a tensor or a tuple of tensors, else wrapped so that it does.

    Args:
        model: any module.
        result: what it returned.

    Returns:
        A module that takes what the model takes, by the same names.

    Raises:
        OutputError: there is no tensor in the result.
    """
    names = [name for name, _ in output_tensors(result)]
    if not names:
        keys = f" with {listed(map(str, result))}" if isinstance(result, Mapping) else ""
        raise OutputError(
            f"{type(model).__name__} returns a {type(result).__name__}{keys} that holds no tensor, so there "
            "is nothing to export; wrap the model in a module that returns tensors"
        )
    if isinstance(result, Tensor) or (
        type(result) is tuple and len(result) > 1 and all(isinstance(item, Tensor) for item in result)
    ):
        return model
    return _with_signature_of(model)(model, names)


def _with_signature_of(model: nn.Module) -> type[TensorOutputs]:
    """The wrapping class, with the arguments of a model: exporters read their names from the signature."""
    inner = _signature_of(model)
    if inner is None:
        return TensorOutputs

    def forward(self: TensorOutputs, *args: object, **kwargs: object) -> Tensor | tuple[Tensor, ...]:
        return TensorOutputs.forward(self, *args, **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    # Annotations are left out: some exporters resolve them where the model's own names are not known.
    others = [p.replace(annotation=inspect.Parameter.empty) for p in inner.parameters.values()]
    free = "self" not in inner.parameters
    forward.__signature__ = inspect.Signature([own, *others]) if free else None  # type: ignore[attr-defined]
    return type("TensorOutputs", (TensorOutputs,), {"forward": forward})


def output_tensors(result: object) -> list[tuple[str, Tensor]]:
    """The tensors that a model returned, by key or index; caches of transformers' models left out.

    Args:
        result: what it returned.

    Returns:
        (name, tensor) in order: a dotted path within containers, "output" for a bare tensor.
    """
    if isinstance(result, Tensor):
        return [("output", result)]
    if isinstance(result, Mapping) and hasattr(result, "to_tuple"):
        result = {key: value for key, value in result.items() if key not in _CACHES}
    return list(named_tensors(result))


def left_out(result: object) -> list[str]:
    """Names of the outputs that hold no tensor but something else, and of caches."""
    entries: list[tuple[str, object]] = []
    if isinstance(result, Mapping):
        entries = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, tuple | list):
        entries = [(str(index), value) for index, value in enumerate(result)]
    kept = {name.partition(".")[0] for name, _ in output_tensors(result)}
    return [name for name, value in entries if name not in kept and value is not None]


def input_names(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """Names of the tensors of a batch, in the order of the call.

    Args:
        model: that the batch goes to.
        batch: arguments of one forward.

    Returns:
        Names of the arguments of ``forward``, within containers a dotted path.
    """
    signature = _signature_of(model)
    parameters = list(signature.parameters.values()) if signature is not None else []
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    names: list[str] = []
    for index, value in enumerate(batch.args):
        name = known[index] if index < len(known) else f"{rest}.{index - len(known)}"
        names += [path for path, _ in named_tensors(value, name)]
    for key, value in batch.kwargs.items():
        names += [path for path, _ in named_tensors(value, key)]
    return tuple(names)


def _signature_of(model: nn.Module) -> inspect.Signature | None:
    """Arguments of a model's forward; None where Python cannot tell them, as for scripts."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None
