# SPDX-License-Identifier: Apache-2.0
"""One evaluation: one layer or group is compressed, the model is scored, and everything is put back."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from slimrank._errors import ScoreError
from slimrank.forward import PrefixCache
from slimrank.methods import Factors, build_replacement, factors_on
from slimrank.records import PRUNING, ChannelMap, LayerSpec, Method
from slimrank.scores import CHANNELS, ScoreEntry
from slimrank.surgery import put_back, replace_module, set_parameters, set_weights, slim

ScoreFn = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerTrial:
    """The pair that replaces one layer while the model is scored.

    Attributes:
        spec: the layer.
        method: the method that the pair belongs to.
        keep_ratio: counted MACs of the pair / MACs of the layer.
        pair: the factors.
        bias: (C_out,) of the last factor; None for none.
    """

    spec: LayerSpec
    method: Method
    keep_ratio: float
    pair: Factors
    bias: Tensor | None

    def __str__(self) -> str:
        setting = self.pair.setting
        return f"layer {self.spec.name!r}, {self.method} {setting.form} rank {setting.rank_text}"

    @property
    def name(self) -> str:
        """Dotted name of the layer."""
        return self.spec.name

    @property
    def start(self) -> str | None:
        """The layer before which the model is the original."""
        return self.spec.name

    def entry(self, score: float) -> ScoreEntry:
        """The line of a table."""
        return ScoreEntry(
            method=self.method,
            form=self.pair.setting.form,
            rank=self.pair.setting.rank,
            rank_in=self.pair.setting.rank_in,
            keep_ratio=self.keep_ratio,
            score=score,
        )

    def on_cpu(self) -> "LayerTrial":
        """The same, its tensors on the CPU."""
        pair = factors_on(self.pair, torch.device("cpu"))
        return replace(self, pair=pair, bias=None if self.bias is None else self.bias.cpu())

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """The pair replaces the layer while the context lasts."""
        layer = model.get_submodule(self.name)
        new = build_replacement(self.spec, layer, self.pair, self.bias)
        replace_module(model, self.name, new)
        try:
            yield
        finally:
            replace_module(model, self.name, layer)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupTrial:
    """Units that stay of one channel group, and what the layers that read it become.

    Attributes:
        name: of the group.
        kept: units that stay, ascending.
        channels: the group, and the tensors that it touches.
        fits: weight and bias of each consumer that is fitted anew, its lost columns and outputs gone; the
            others lose columns alone.
        states: recurrent matrices and their biases that are fitted anew, by name of the parameter.
        start: the layer before which nothing changes; None where that is not known.
    """

    name: str
    kept: tuple[int, ...]
    channels: ChannelMap
    fits: Mapping[str, tuple[Tensor, Tensor]]
    start: str | None
    states: Mapping[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"group {self.name!r}, {PRUNING} {len(self.kept)} of {self._units} units"

    @property
    def _units(self) -> int:
        return self.channels.groups[self.name].units

    def entry(self, score: float) -> ScoreEntry:
        """The line of a table."""
        count = len(self.kept)
        return ScoreEntry(
            method=PRUNING, form=CHANNELS, rank=count, keep_ratio=count / self._units, score=score
        )

    def on_cpu(self) -> "GroupTrial":
        """The same, its tensors on the CPU."""
        fits = {name: (weight.cpu(), bias.cpu()) for name, (weight, bias) in self.fits.items()}
        return replace(self, fits=fits, states={name: new.cpu() for name, new in self.states.items()})

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """The group is slimmed while the context lasts."""
        # Everything that is slimmed goes back to what it was, also when the score function fails.
        with put_back(model):
            slim(model, self.channels, {self.name: self.kept})
            set_parameters(model, self.states)
            for name, (weight, bias) in self.fits.items():
                layer = model.get_submodule(name)
                device = next(layer.parameters()).device
                set_weights(layer, weight.to(device), bias.to(device))
            yield


AnyTrial = LayerTrial | GroupTrial


class Evaluator:
    """Scores trials on a private copy of the model.

    Args:
        model: a private copy in eval mode.
        score_fn: of the caller.
        max_bytes: of outputs of unchanged layers that are held at most; 0 for none.
    """

    def __init__(self, model: nn.Module, score_fn: ScoreFn, *, max_bytes: int) -> None:
        self._model = model
        self._score_fn = score_fn
        self._cache = PrefixCache(model, max_bytes=max_bytes)
        # The threads of a joblib backend share one model, and a trial changes it.
        self._lock = threading.Lock()

    def baseline(self) -> float:
        """Score of the untouched model.

        Raises:
            ScoreError: the function fails, returns no finite number, or changes the model.
        """
        with self._lock:
            return self._score("the untouched model", None)

    def score(self, trial: AnyTrial) -> float:
        """Score of the model with one layer replaced, or one group slimmed.

        Args:
            trial: what to replace or slim.

        Returns:
            The score, finite.

        Raises:
            ScoreError: the function fails, returns no finite number, or changes the model.
        """
        with self._lock, trial.installed(self._model):
            return self._score(str(trial), trial.start)

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
    return _score_number(value, where)


def _score_number(value: object, where: str) -> float:
    try:
        # Texts convert as well, but "0.9" is more likely a mistake than a score.
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
    """What may not change, by a name for people.

    The objects themselves are held, not their ids: a freed object's id may be given to a new one.
    """
    state: dict[str, tuple[object, ...]] = {}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        label = f"module {name!r}" if name else "the model itself"
        state[label] = (_Identity(module), module.training, hooks)
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            state[f"{kind} {name!r}"] = (
                _Identity(tensor),
                tensor.data_ptr(),
                tensor.dtype,
                _checksum(tensor),
            )
    return state


def _checksum(tensor: Tensor) -> int:
    """A sum over the bits. Torch's own counter of changes misses ``.data`` and the statistics of norms."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    # Four bytes at a time is faster; a view of int32 needs their number and their start to be multiples of 4.
    is_aligned = len(flat) % 4 == 0 and flat.storage_offset() % 4 == 0
    words = flat.view(torch.int32) if is_aligned else flat
    return int(words.sum(dtype=torch.int64))


class _Identity:
    """Equal to another one that holds the same object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
