# SPDX-License-Identifier: Apache-2.0
"""One evaluation: a model with one layer replaced, its score, and everything as it was."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank._errors import ScoreError
from slimrank.graph import PrefixCache, replace_module
from slimrank.methods import Pair, build_pair
from slimrank.records import LayerSpec, Method

ScoreFn = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """What takes the place of one layer.

    Attributes:
        spec: the layer.
        method: the method that the pair belongs to.
        keep_ratio: counted MACs of the pair / MACs of the layer.
        pair: the factors.
        bias: (O,) of the second; None for none.
    """

    spec: LayerSpec
    method: Method
    keep_ratio: float
    pair: Pair
    bias: Tensor | None

    def __str__(self) -> str:
        return f"layer {self.spec.name!r}, {self.method} {self.pair.form} rank {self.pair.rank}"


class Bench:
    """A private copy of the model, and the function that scores it.

    Args:
        model: a private copy in eval mode.
        score_fn: of the caller.
        max_bytes: outputs of unchanged layers held at most; 0 for none.
    """

    def __init__(self, model: nn.Module, score_fn: ScoreFn, *, max_bytes: int) -> None:
        self._model = model
        self._score_fn = score_fn
        self._cache = PrefixCache(model, max_bytes=max_bytes)
        # Backends with threads share one bench.
        self._lock = threading.Lock()

    def baseline(self) -> float:
        """Score of the untouched model.

        Raises:
            ScoreError: the function fails, returns no finite number, or changes the model.
        """
        with self._lock:
            return self._score("the untouched model", None)

    def score(self, trial: Trial) -> float:
        """Score of the model with one layer replaced.

        Args:
            trial: what takes its place.

        Returns:
            The score, finite.

        Raises:
            ScoreError: the function fails, returns no finite number, or changes the model.
        """
        name = trial.spec.name
        with self._lock:
            layer = self._model.get_submodule(name)
            new = nn.Sequential(*build_pair(trial.spec, layer, trial.pair, trial.bias))
            replace_module(self._model, name, new)
            try:
                return self._score(str(trial), name)
            finally:
                replace_module(self._model, name, layer)

    def _score(self, where: str, layer: str | None) -> float:
        with self._cache.evaluation(layer):
            return score_model(self._model, self._score_fn, where)


def score_model(model: nn.Module, score_fn: ScoreFn, where: str) -> float:
    """What a score function says of a model.

    Args:
        model: left in eval mode.
        score_fn: of the caller.
        where: of messages.

    Returns:
        The score, finite.

    Raises:
        ScoreError: the function fails, returns no finite number, or changes the model.
    """
    model.eval()
    with _unchanged(model, where):
        try:
            value = score_fn(model)
        except Exception as error:
            raise ScoreError(
                f"{where}: score_fn failed with {type(error).__name__}: {error}; try score_fn(model) on "
                "the model itself"
            ) from error
    return _number(value, where)


def _number(value: object, where: str) -> float:
    try:
        # Texts convert as well, but are never meant.
        number = None if isinstance(value, str | bytes | None) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise ScoreError(
            f"{where}: score_fn returned a {type(value).__name__}; return one number, e.g. the accuracy"
        )
    if not math.isfinite(number):
        raise ScoreError(
            f"{where}: score_fn returned {number}; return a finite number, e.g. the worst score where the "
            "model gives nan"
        )
    return number


@contextmanager
def _unchanged(model: nn.Module, where: str) -> Iterator[None]:
    """Refuses what changes the model.

    Raises:
        ScoreError: weights, buffers, modes, hooks or modules are not what they were.
    """
    before = _state(model)
    yield
    after = _state(model)
    changed = [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ScoreError(
            f"{where}: score_fn changed the model ({changed[0]}{more}); work on copy.deepcopy(model), or put "
            "back what was changed"
        )


def _state(model: nn.Module) -> dict[str, tuple[object, ...]]:
    """What may not change, by a name for people; the objects themselves, so that no address serves twice."""
    state: dict[str, tuple[object, ...]] = {}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        label = f"module {name!r}" if name else "the model itself"
        state[label] = (_Same(module), module.training, hooks)
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            state[f"{kind} {name!r}"] = (_Same(tensor), tensor.data_ptr(), tensor.dtype, _checksum(tensor))
    return state


def _checksum(tensor: Tensor) -> int:
    """A sum over the bits. Torch's own counter of changes misses ``.data`` and the statistics of norms."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    is_aligned = len(flat) % 4 == 0 and flat.storage_offset() % 4 == 0
    words = flat.view(torch.int32) if is_aligned else flat
    return int(words.sum(dtype=torch.int64))


class _Same:
    """Equal where it is the same object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
