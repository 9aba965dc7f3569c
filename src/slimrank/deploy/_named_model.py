# SPDX-License-Identifier: Apache-2.0
"""A model whose inputs and outputs are tensors with names."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from keyword import iskeyword

from torch import Tensor, nn

from slimrank._errors import ExportError
from slimrank._names import listed
from slimrank.forward import Batch, named_tensors

# What models of transformers return for their own next call.
_CACHES = frozenset({"past_key_values", "cache_params", "mems", "past_buckets_states"})


class NamedModel(nn.Module):
    """A model around which arguments have names, and outputs are tensors only.

    Arguments without a tensor are fixed. Outputs are one tensor, a tuple of tensors, or a dict of tensors.

    Args:
        model: in eval mode.
        batch: that it takes: which arguments there are, and which of them hold tensors.
        outputs: paths of the tensors among its outputs, as ``output_tensors`` gives them.

    Attributes:
        title: name of the model's class, for messages.
        positional: names of the positional arguments.
        keywords: names of the others.
        fixed: values of the arguments without a tensor, by name.
        arguments: names of those with one.
        outputs: names in a file by path, in order.
    """

    def __init__(self, model: nn.Module, batch: Batch, outputs: Sequence[str]) -> None:
        super().__init__()
        self.title = type(model).__name__
        self.model = model
        self.keywords = tuple(batch.kwargs)
        self.positional = tuple(_positional_names(model, len(batch.args), self.keywords))
        values = zip((*self.positional, *self.keywords), (*batch.args, *batch.kwargs.values()), strict=True)
        self.fixed = {name: value for name, value in values if not any(named_tensors(value))}
        names = (*self.positional, *self.keywords)
        self.arguments = tuple(name for name in names if name not in self.fixed)
        taken = (*self.arguments, *self.input_tensors(batch))
        self.outputs = dict(zip(outputs, _output_names(outputs, taken), strict=True))

    def inputs_of(self, batch: Batch) -> Batch:
        """The arguments that hold tensors, positional and keyword ones as they are in the batch."""
        positional = zip(self.positional, batch.args, strict=True)
        return Batch(
            args=tuple(value for name, value in positional if name not in self.fixed),
            kwargs={key: batch.kwargs[key] for key in self.keywords if key not in self.fixed},
            where=batch.where,
        )

    def input_tensors(self, batch: Batch) -> dict[str, Tensor]:
        """Every tensor of the arguments by its name in a file: the argument, then keys and indices."""
        inputs = self.inputs_of(batch)
        values = zip(self.arguments, (*inputs.args, *inputs.kwargs.values()), strict=True)
        tensors = [entry for name, value in values for entry in named_tensors(value, name)]
        names = _different(path.replace(".", "_") for path, _ in tensors)
        return {name: tensor for name, (_, tensor) in zip(names, tensors, strict=True)}

    def output_tensors(self, result: object) -> dict[str, Tensor]:
        """Every output tensor by its name in a file, of what a model returned, this or the original.

        Raises:
            ExportError: an output is missing.
        """
        found = dict(output_tensors(result))
        missing = [path for path in self.outputs if path not in found]
        if missing:
            raise ExportError(
                f"{self.title} did not return {listed(missing)} for every batch; wrap the model so that "
                "it always returns the same tensors"
            )
        return {name: found[path] for path, name in self.outputs.items()}

    def forward(self, *args: object, **kwargs: object) -> object:
        """The model's outputs, tensors only."""
        given = iter((*args, *kwargs.values()))
        names = (*self.positional, *self.keywords)
        values = [self.fixed[name] if name in self.fixed else next(given) for name in names]
        n_positional = len(self.positional)
        keywords = dict(zip(self.keywords, values[n_positional:], strict=True))
        tensors = self.output_tensors(self.model(*values[:n_positional], **keywords))
        if tuple(self.outputs) == ("output",):
            return tensors[self.outputs["output"]]
        has_keys = not any(path[0].isdecimal() for path in self.outputs)
        return tensors if has_keys else tuple(tensors.values())


def named_model(model: nn.Module, batch: Batch, outputs: Sequence[str]) -> NamedModel:
    """The model with named arguments, as exporters read them from the signature of ``forward``.

    Args:
        model: in eval mode.
        batch: that it takes.
        outputs: as in ``NamedModel``.

    Returns:
        The model, of a class of its own whose ``forward`` has one parameter for each argument with tensors.

    Raises:
        ExportError: a keyword of the batch is no name.
    """
    plain = NamedModel(model, batch, outputs)
    wrong = [name for name in plain.arguments if not name.isidentifier() or iskeyword(name) or name == "self"]
    if wrong:
        raise ExportError(
            f"{plain.title} takes {listed(wrong)}, which cannot name an argument of a file; wrap the model "
            "in a module whose forward has parameters of other names"
        )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def forward(self: NamedModel, *args: object, **kwargs: object) -> object:
        return NamedModel.forward(self, *args, **kwargs)

    parameters = [inspect.Parameter(name, kind) for name in ("self", *plain.arguments)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    named: type[NamedModel] = type(plain.title, (NamedModel,), {"forward": forward})
    return named(model, batch, outputs)


def output_tensors(result: object) -> list[tuple[str, Tensor]]:
    """The tensors that a model returned, by key or index; caches of transformers' models left out.

    Args:
        result: what it returned.

    Returns:
        (path, tensor) in order: a dotted path within containers, "output" for a bare tensor.
    """
    if isinstance(result, Mapping) and hasattr(result, "to_tuple"):
        result = {key: value for key, value in result.items() if key not in _CACHES}
    tensors = list(named_tensors(result))
    paths = _different(path or "output" for path, _ in tensors)
    return [(path, tensor) for path, (_, tensor) in zip(paths, tensors, strict=True)]


def left_out(result: object) -> list[str]:
    """Names of the outputs that hold no tensor but something else, and of caches."""
    entries: list[tuple[str, object]] = []
    if isinstance(result, Mapping):
        entries = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, tuple | list):
        entries = [(str(index), value) for index, value in enumerate(result)]
    kept = {path.partition(".")[0] for path, _ in output_tensors(result)}
    return [name for name, value in entries if name not in kept and value is not None]


def _positional_names(model: nn.Module, count: int, keywords: Sequence[str]) -> list[str]:
    """A name for each positional argument: that of the parameter of ``forward`` which takes it."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    rest = "input" if rest in ("args", "inputs") else rest
    names += [f"{rest}_{index}" if count > 1 else rest for index in range(len(names), count)]
    return _different(names[:count], keywords)


def _output_names(paths: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names of outputs in a file: keys, ``output_0`` for an index, neither of which inputs have."""
    names = [path.replace(".", "_") for path in paths]
    return _different(
        (f"output_{name}" if name[0].isdecimal() or name in taken else name for name in names), taken
    )


def _different(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, with a number behind those that are taken or come again."""
    found: dict[str, None] = {}
    used = set(taken)
    for name in names:
        new, number = name, 1
        while new in used or new in found:
            number += 1
            new = f"{name}_{number}"
        found[new] = None
    return list(found)
