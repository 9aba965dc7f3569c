# SPDX-License-Identifier: Apache-2.0
"""Slimmed and masked models side by side: what one does that the other does not."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from slimrank.channels.trial._attention_scale import (
    AttentionScores,
    QueryKeyProduct,
    SeenScores,
    is_made_up_for,
    read_products,
    with_queries,
)
from slimrank.cost import query_scales, stays
from slimrank.forward import (
    Batch,
    call,
    error_with_source_line,
    fixed_seed_without_warnings,
    is_users_code,
    map_tensors,
    named_tensors,
    plain_attention,
    training_error,
    watch_modules,
)
from slimrank.records import ChannelMap, Kept
from slimrank.surgery import copy_model, light_copy, mask, replace_tensors, slim, without_nesting

# Share of the largest value by which slimmed and masked model may differ, since sums over fewer channels are
# rounded in another order.
_TOLERANCE = 1e-4
# And in half precision by less than so many roundings of the dtype.
_EPS_FACTOR = 64
# A difference below this may be rounding that a deep net has blown up; above it nothing is that.
_MAYBE_ROUNDING = 0.05
# The same in float64, where a difference that was rounding falls below one of these; the second is a share of
# the difference before.
_TOLERANCE_DOUBLE = 1e-5
_ROUNDING_SHRINKS = 1e-2
# Torch's fused layers sum in another order, and in other kernels.
_FUSED_TOLERANCE = 1e-3
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# Results of masked models that are kept, since the same units are tried with many sizes. Each one holds the
# outputs of all watched layers.
_REMEMBERED = 4
# Roundings of the dtype by which outputs of layers are changed, to see whether the model's own outputs jump.
_SHAKE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What goes wrong in a slimmed model.

    Attributes:
        kind: it raises, computes something else than the masked model, cannot be trained, or nothing can be
            compared.
        text: the error with its source line, or how much differs.
        size: the difference, as a share of the largest value; 0 where it raises.
        is_late: every watched layer gives the same, only what the model makes of it differs.
        steps: calls of torch before it raises, which tells how far the forward has come.
        module: whose code raises, the innermost one; None where it does not, or where no module's does.
    """

    kind: Literal["raises", "differs", "trains", "blind"]
    text: str
    size: float = 0.0
    is_late: bool = False
    steps: int = 0
    module: str | None = None

    @property
    def line(self) -> str:
        """File and number of the source line where it raises; "" where it does not."""
        return self.text.rpartition(" at ")[2].partition(" ")[0] if self.kind == "raises" else ""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Floating outputs by path, what watched layers gave at every call, and scores that a width scales."""

    outputs: Mapping[str, Tensor]
    layers: Mapping[str, Sequence[Tensor]]
    scores: Sequence[AttentionScores] = ()


class Comparison:
    """A model that is slimmed on private copies, again and again; these share what is not slimmed."""

    def __init__(self, model: nn.Module, sample: Batch, watched: Sequence[str]) -> None:
        """Takes a private copy.

        Args:
            model: any model; not changed.
            sample: for every forward.
            watched: layers whose outputs are compared as well.
        """
        self.model = copy_model(model)
        self.model.eval()
        # Zeros at padded positions, which go when the layers are called one by one, are no difference.
        without_nesting(self.model)
        for parameter in self.model.parameters():
            # Users may train what is frozen now, so the trial trains all of it.
            parameter.requires_grad = parameter.is_floating_point()
        self._sample = sample
        self._watched = tuple(watched)
        self._masked: OrderedDict[object, _Seen] = OrderedDict()
        self._double: Comparison | None = None
        self._trains: bool | None = None
        self._products: tuple[QueryKeyProduct, ...] | None = None

    def problem(self, channels: ChannelMap, kept: Kept, *, is_full: bool = False) -> Problem | None:
        """What goes wrong when these units are all that stays.

        Args:
            channels: groups, with the sizes to be tried.
            kept: group -> units that stay.
            is_full: whether torch's fused layers and training are tried too.

        Returns:
            The problem; None where the slimmed model does what the masked one does.
        """
        slimmed, steps = light_copy(self.model), _Steps()
        try:
            slim(slimmed, channels, kept)
            with steps:
                got = _observe(slimmed, self._sample, self._watched)
        except Exception as error:
            # Whatever the user's code raises is the answer to the question asked here.
            return Problem(
                kind="raises",
                text=error_with_source_line(error),
                steps=steps.count,
                module=_raising_module(slimmed, error),
            )
        expected = self._expected(channels, kept)
        problem = _difference(expected, got, _KeptOutputs(self.model, channels, kept), _TOLERANCE)
        if problem is not None and (problem.is_late or problem.size < _MAYBE_ROUNDING):
            problem = self._beyond_rounding(channels, kept, problem)
        if problem is None and is_full:
            problem = self._in_use(channels, kept, expected)
        return problem

    def with_queries(self, channels: ChannelMap, group: str) -> ChannelMap | None:
        """The map that makes up for attention which takes its scale from the size of a group.

        Args:
            channels: of the model.
            group: one of its groups.

        Returns:
            The map; None where the group is not summed over, nothing tells its queries from its keys, or
            they are scaled already.
        """
        if not channels.groups[group].is_inner:
            return None
        if self._products is None:
            model = light_copy(self.model)
            try:
                with fixed_seed_without_warnings(model), plain_attention():
                    self._products = read_products(model, self._sample, channels)
            except Exception:
                # Code that cannot be run with gradients.
                self._products = ()
        return with_queries(channels, group, self._products)

    def channels_into(self, channels: ChannelMap, kept: Kept, names: Sequence[str]) -> Mapping[str, int]:
        """How many channels modules of the slimmed model get.

        Args:
            channels: groups, with the sizes that were found.
            kept: group -> units that stay.
            names: of modules.

        Returns:
            Size of the second dimension of the first input, by name; modules that do not run are left out.
        """
        slimmed = light_copy(self.model)
        slim(slimmed, channels, kept)
        found: dict[str, int] = {}

        def enter(name: str, args: tuple[object, ...], _kwargs: object) -> None:
            x = args[0] if args else None
            if isinstance(x, Tensor) and x.ndim > 1:
                found[name] = x.shape[1]

        with watch_modules(((name, slimmed.get_submodule(name)) for name in names), enter=enter):
            _observe(slimmed, self._sample, ())
        return found

    def _expected(self, channels: ChannelMap, kept: Kept) -> _Seen:
        # Two groups that were made one have the name of the first, and more producers.
        key = tuple(
            sorted((name, channels.groups[name].producers, tuple(units)) for name, units in kept.items())
        )
        if key not in self._masked:
            masked = light_copy(self.model)
            _unshare_tensors(masked, channels)
            mask(masked, channels, kept)
            self._masked[key] = _observe(masked, self._sample, self._watched)
            if len(self._masked) > _REMEMBERED:
                self._masked.popitem(last=False)
        self._masked.move_to_end(key)
        return self._masked[key]

    def _beyond_rounding(self, channels: ChannelMap, kept: Kept, problem: Problem) -> Problem | None:
        """The same in float64, where what was rounding all but vanishes."""
        exact = self
        try:
            if self._double is None:
                self._double = Comparison(
                    copy_model(self.model).double(), _doubled(self._sample), self._watched
                )
            expected = self._double._expected(channels, kept)
            slimmed = light_copy(self._double.model)
            slim(slimmed, channels, kept)
            got = _observe(slimmed, self._double._sample, self._watched)
        except Exception:
            # Code that asks for float32 by name.
            left: Problem | None = problem
        else:
            exact = self._double
            tolerance = max(_TOLERANCE_DOUBLE, problem.size * _ROUNDING_SHRINKS)
            left = _difference(expected, got, _KeptOutputs(exact.model, channels, kept), tolerance)
        if left is None or not left.is_late:
            return left
        # Layers agree. Boxes that are ranked by scores which are equal up to rounding tell nothing.
        is_seen = all(channels.groups[name].consumers for name in kept)
        return None if is_seen and not exact._is_steady(channels, kept) else left

    def _is_steady(self, channels: ChannelMap, kept: Kept) -> bool:
        """Whether what the masked model returns hardly changes when what its layers make hardly does."""
        masked = light_copy(self.model)
        _unshare_tensors(masked, channels)
        mask(masked, channels, kept)
        shaken = _observe(masked, self._sample, self._watched, is_shaken=True)
        before, after = self._expected(channels, kept).outputs, shaken.outputs
        rows = _KeptOutputs(self.model, channels, kept)
        return _difference(_Seen(before, {}), _Seen(after, {}), rows, _TOLERANCE) is None

    def _in_use(self, channels: ChannelMap, kept: Kept, expected: _Seen) -> Problem | None:
        """The problem in use: with torch's fused layers, which hooks switch off, and in training."""
        slimmed = light_copy(self.model)
        slim(slimmed, channels, kept)
        if any(isinstance(module, _FUSED) for module in self.model.modules()):
            try:
                got = _observe(slimmed, self._sample, (), is_plain=False)
            except Exception as error:
                return Problem(kind="raises", text=error_with_source_line(error))
            outputs = _Seen(expected.outputs, {})
            problem = _difference(outputs, got, _KeptOutputs(self.model, channels, kept), _FUSED_TOLERANCE)
            if problem is not None:
                return problem
        if self._trains is None:
            self._trains = training_error(light_copy(self.model), self._sample) is None
        training_problem = training_error(slimmed, self._sample) if self._trains else None
        for parameter in self.model.parameters():
            parameter.grad = None
        return None if training_problem is None else Problem(kind="trains", text=training_problem)


class _Steps(TorchFunctionMode):
    """Counts calls of torch."""

    count = 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Counts the call; runs it as it is."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def _raising_module(model: nn.Module, error: Exception) -> str | None:
    """The innermost module of a model in whose code, which is not torch's, an error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    found = None
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        holder = frame.f_locals.get("self")
        if id(holder) in names and is_users_code(frame.f_code.co_filename):
            found = names[id(holder)]
        traceback = traceback.tb_next
    return found


class _KeptOutputs:
    """Which outputs of a layer stay, for layers that are slimmed themselves."""

    def __init__(self, model: nn.Module, channels: ChannelMap, kept: Kept) -> None:
        self._model = model
        self._channels = channels
        self._kept = kept

    def taken(self, name: str, output: Tensor) -> Tensor:
        """What stays of a layer's output.

        Args:
            name: of the layer.
            output: of the layer in the masked model.

        Returns:
            The output without the channels that go, queries scaled.
        """
        module = self._model.get_submodule(name)
        spec = self._channels.tensors.get(f"{name}.weight")
        if spec is None or not isinstance(module, nn.Linear | _ConvNd):
            return output
        staying = stays(spec, self._kept)
        dim = 1 if isinstance(module, _ConvTransposeNd) else 0
        if dim not in staying:
            return output
        index = torch.from_numpy(staying[dim]).to(output.device)
        channel_dim = -1 if isinstance(module, nn.Linear) else 1 - len(spec.shape)
        taken = output.index_select(channel_dim, index)
        scales = query_scales(spec, self._kept).get(dim)
        if scales is None:
            return taken
        return (taken.movedim(channel_dim, -1) * torch.from_numpy(scales).to(taken)).movedim(-1, channel_dim)


def _observe(
    model: nn.Module,
    sample: Batch,
    watched: Sequence[str],
    *,
    is_plain: bool = True,
    is_shaken: bool = False,
) -> _Seen:
    """One forward in eval mode; shaken, what watched layers give is changed by about its rounding."""
    layers: dict[str, list[Tensor]] = {name: [] for name in watched}
    scores = SeenScores()

    def leave(name: str, _args: object, _kwargs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        layers[name].append(output.detach().clone())
        rounding = _SHAKE * torch.finfo(output.dtype).eps
        return output + rounding * output * torch.randn_like(output) if is_shaken else None

    # Whatever watches would keep torch from its fused layers.
    with (
        watch_modules(((name, model.get_submodule(name)) for name in watched), leave=leave),
        torch.no_grad(),
        fixed_seed_without_warnings(model),
        _watched_plainly(scores) if is_plain else contextlib.nullcontext(),
    ):
        result = call(model, sample)
    outputs = {name: tensor.detach() for name, tensor in named_tensors(result) if tensor.is_floating_point()}
    return _Seen(outputs=outputs, layers=layers, scores=tuple(scores.seen))


@contextlib.contextmanager
def _watched_plainly(scores: SeenScores) -> Iterator[None]:
    with plain_attention(), scores:
        yield


def _difference(expected: _Seen, got: _Seen, rows: _KeptOutputs, tolerance: float) -> Problem | None:
    for masked, slimmed in zip(expected.scores, got.scores, strict=False):
        # Also where it makes no difference that could be measured, since untrained attention is almost even.
        if masked.width != slimmed.width and not is_made_up_for(masked, slimmed):
            text = "scaled_dot_product_attention, told no scale, divides by the square root of the width"
            return Problem(kind="differs", text=text, size=1.0)
    # Layers come first: what differs there shows what is wrong better than the end of the model.
    for name, calls in expected.layers.items():
        if len(calls) != len(got.layers[name]):
            return Problem(kind="differs", text=f"{name} is called another number of times", size=1.0)
        for before, after in zip(calls, got.layers[name], strict=True):
            problem = _compared(f"the output of {name}", rows.taken(name, before), after, tolerance)
            if problem is not None:
                return problem
    if list(expected.outputs) != list(got.outputs):
        return Problem(kind="differs", text="the slimmed model returns other outputs", size=1.0, is_late=True)
    for name, before in expected.outputs.items():
        title = f"output {name!r}" if name else "the output"
        problem = _compared(title, before, got.outputs[name], tolerance)
        if problem is not None:
            return replace(problem, is_late=True)
    return None


def _compared(name: str, before: Tensor, after: Tensor, tolerance: float) -> Problem | None:
    if before.shape != after.shape:
        text = f"{name} is {tuple(after.shape)}, and {tuple(before.shape)} in the masked model"
        return Problem(kind="differs", text=text, size=1.0)
    finite = before.isfinite()
    if not finite.all() and after.isfinite().all():
        text = f"{name} holds nan or inf once its channels are zeros (a norm of its weights, say, may be 0)"
        return Problem(kind="blind", text=text, size=1.0)
    if not torch.equal(finite, after.isfinite()):
        return Problem(kind="differs", text=f"{name} holds nan or inf at other places", size=1.0)
    if not finite.any():
        return None
    lost = float((before - after)[finite].abs().double().max())
    scale = max(float(before[finite].abs().double().max()), 1e-30)
    if lost > max(tolerance, _EPS_FACTOR * torch.finfo(before.dtype).eps) * scale:
        text = f"slimmed and masked model differ by {lost / scale:.0e} in {name}"
        return Problem(kind="differs", text=text, size=lost / scale)
    return None


def _unshare_tensors(model: nn.Module, channels: ChannelMap) -> None:
    """Gives a light copy parameters of its own where a group touches them."""
    named = dict(model.named_parameters(remove_duplicate=False))
    touched = [named[name] for name in channels.tensors if name in named]
    replace_tensors(
        model,
        {id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in touched},
    )


def _doubled(sample: Batch) -> Batch:
    def double(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return replace(
        sample,
        args=tuple(map_tensors(value, double) for value in sample.args),
        kwargs={key: map_tensors(value, double) for key, value in sample.kwargs.items()},
    )
