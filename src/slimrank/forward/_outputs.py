# SPDX-License-Identifier: Apache-2.0
"""The tensors that matter among what a model returns."""

from collections.abc import Callable, Mapping

from torch import Tensor

from slimrank._errors import OutputError
from slimrank.forward._batch import named_tensors

OutputChoice = Callable[[object], object] | str | int | None


def pick_outputs(result: object, choice: OutputChoice) -> Mapping[str, Tensor]:
    """The floating tensors that a divergence is measured on.

    Args:
        result: what the model returned.
        choice: a function of it, a key, an index, or None: ``logits`` where there is one, else all
            floating tensors.

    Returns:
        Tensors by path; "" for a bare tensor.

    Raises:
        OutputError: nothing floating is left, or the choice does not fit the result.
    """
    try:
        picked = _apply_choice(result, choice)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise OutputError(
            f"outputs={choice!r} does not fit what the model returned, a {type(result).__name__} "
            f"({type(error).__name__}: {error}); give a function of it, a key or an index"
        ) from error
    tensors = {
        name: tensor for name, tensor in named_tensors(picked) if tensor.is_floating_point() and tensor.ndim
    }
    if choice is None:
        logits = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "logits"}
        tensors = logits or tensors
    if not tensors:
        raise OutputError(
            f"the model returned {type(result).__name__} without a floating tensor that can be compared; "
            "pass outputs=lambda out: ... that picks the tensors that matter, or wrap the model so that it "
            "returns what it has before an argmax"
        )
    return tensors


def _apply_choice(result: object, choice: OutputChoice) -> object:
    if choice is None:
        return result
    if callable(choice):
        return choice(result)
    if isinstance(choice, str) and not isinstance(result, Mapping):
        return getattr(result, choice)
    return result[choice]  # type: ignore[index]
