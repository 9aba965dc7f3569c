# SPDX-License-Identifier: Apache-2.0
"""A model whose inputs and outputs are tensors with names."""

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from slimrank._errors import ExportError
from slimrank._names import listed
from slimrank.forward import Batch, named_tensors


class NamedModel(nn.Module):
    """A model around which arguments have names, and outputs are tensors only.

    Arguments without a tensor are fixed. Outputs are one tensor, a tuple of tensors, or a dict of tensors.

    Args:
        model: in eval mode.
        batch: that it takes: which arguments there are, and which of them hold tensors.
        outputs: paths of the tensors among its outputs, in their order; "output" for a bare one.
        original: the model before it was prepared, for messages.
    """

    def __init__(self, model: nn.Module, batch: Batch, outputs: Sequence[str], original: nn.Module) -> None:
        super().__init__()
        self.title = type(original).__name__
        # Of modules: what was prepared may stand in a wrapper, whose attribute "model" it is then.
        self.prefix = "" if type(model) is type(original) else "model."
        self.model = model
        self._arguments = _names_of(model, batch)
        values = dict(zip(self._arguments, (*batch.args, *batch.kwargs.values()), strict=True))
        self._n_positional = len(batch.args)
        self._keywords = tuple(batch.kwargs)
        self.fixed = {name: value for name, value in values.items() if not any(named_tensors(value))}
        self.arguments = tuple(name for name in self._arguments if name not in self.fixed)
        self.outputs = {path: name_of_output(path, self.arguments) for path in outputs}

    def inputs_of(self, batch: Batch) -> Batch:
        """The arguments that hold tensors, positional and keyword ones as they are in the batch."""
        values = dict(zip(self._arguments, (*batch.args, *batch.kwargs.values()), strict=True))
        positional = self._arguments[: self._n_positional]
        return Batch(
            args=tuple(values[name] for name in positional if name not in self.fixed),
            kwargs={
                key: batch.kwargs[key]
                for key, name in zip(self._keywords, self._arguments[self._n_positional :], strict=True)
                if name not in self.fixed
            },
            where=batch.where,
        )

    def input_tensors(self, batch: Batch) -> dict[str, Tensor]:
        """Every tensor of the arguments by its name in a file."""
        inputs = self.inputs_of(batch)
        values = zip(self.arguments, (*inputs.args, *inputs.kwargs.values()), strict=True)
        return {
            path.replace(".", "_"): tensor
            for name, value in values
            for path, tensor in named_tensors(value, name)
        }

    def output_tensors(self, result: object) -> dict[str, Tensor]:
        """Every output tensor by its name in a file, of what the model before preparation returned.

        Raises:
            ExportError: an output is missing.
        """
        found = {path or "output": tensor for path, tensor in named_tensors(result)}
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
        values = [self.fixed[name] if name in self.fixed else next(given) for name in self._arguments]
        positional = values[: self._n_positional]
        result = self.model(
            *positional, **dict(zip(self._keywords, values[self._n_positional :], strict=True))
        )
        tensors = [tensor for _, tensor in named_tensors(result)]
        if len(tensors) == 1 and "output" in self.outputs:
            return tensors[0]
        has_keys = not any(path[0].isdecimal() for path in self.outputs)
        return dict(zip(self.outputs.values(), tensors, strict=True)) if has_keys else tuple(tensors)


def named_model(model: nn.Module, batch: Batch, outputs: Sequence[str], original: nn.Module) -> NamedModel:
    """The model with named arguments, as exporters read them from the signature of ``forward``.

    Args:
        model: in eval mode.
        batch: that it takes.
        outputs: as in ``NamedModel``.
        original: as in ``NamedModel``.

    Returns:
        The model, of a class of its own whose ``forward`` has one parameter for each argument with tensors.
    """
    plain = NamedModel(model, batch, outputs, original)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def forward(self: NamedModel, *args: object, **kwargs: object) -> object:
        return NamedModel.forward(self, *args, **kwargs)

    parameters = [inspect.Parameter(name, kind) for name in ("self", *plain.arguments)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    named: type[NamedModel] = type(plain.title, (NamedModel,), {"forward": forward})
    return named(model, batch, outputs, original)


def name_of_output(path: str, taken: Sequence[str]) -> str:
    """The name of an output in a file: its key, ``output_0`` for an index."""
    name = path.replace(".", "_")
    return f"output_{name}" if name[0].isdecimal() or name in taken else name


def _names_of(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """A name for each argument: that of the parameter of ``forward`` which takes it."""
    names: list[str] = []
    parameters = list(inspect.signature(model.forward).parameters.values())
    for index in range(len(batch.args)):
        parameter = parameters[min(index, len(parameters) - 1)] if parameters else None
        if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY):
            name = "input" if parameter is None or parameter.name in ("args", "inputs") else parameter.name
            names.append(f"{name}_{index}" if len(batch.args) > 1 else name)
        else:
            names.append(parameter.name)
    return (*names, *batch.kwargs)
