# SPDX-License-Identifier: Apache-2.0
"""Second moments of output gradients, label-free, over the fit samples."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slimrank._errors import GradientError, NonFiniteError, SlimrankError
from slimrank.calibrate._divergence import sampled_loss
from slimrank.calibrate._feed import Feed
from slimrank.calibrate._gates import opened
from slimrank.calibrate._moments import layer_seed
from slimrank.calibrate._output_model import Likelihood
from slimrank.calibrate._rows import output_rows, token_mask
from slimrank.cost import MAX_METRIC_WIDTH
from slimrank.forward import OutputChoice, pick_outputs, run, tap_layers
from slimrank.linalg import gram
from slimrank.records import LayerSpec

# Rows of gradients that are summed for one call of a layer and one draw, over all fit samples, about. More
# make the output metric more precise and take longer to sum.
GRADIENT_ROWS = 32768
# But at least so many from every micro-batch that has them.
_MIN_BATCH_ROWS = 256
# Samples up to which each is drawn for as often as was asked. On the networks of the benchmark, with 410
# samples, one draw each was as good as four, and with 102 samples two.
SAMPLES_DRAWN_IN_FULL = 50
# Factors of the loss in float16, tried in this order until no sum overflows: a large factor keeps small
# gradients from becoming zero, a small one keeps large gradients from becoming inf.
_HALF_LOSS_SCALES = (1024.0, 32.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientOptions:
    """How output gradients are drawn.

    Attributes:
        likelihood: how outputs are read.
        outputs: which outputs matter.
        draws: random losses for each of up to ``in_full`` samples; of more samples, fewer for each, so that
            their number stays.
        in_full: number of samples.
    """

    likelihood: Likelihood
    outputs: OutputChoice
    draws: int
    in_full: int = SAMPLES_DRAWN_IN_FULL

    def per_sample(self, n_samples: int) -> int:
        """Draws for each of so many samples, 1 to ``draws``."""
        return min(self.draws, ceil(self.draws * self.in_full / max(n_samples, 1)))


def collect_gradients(
    model: nn.Module,
    feed: Feed,
    specs: Sequence[LayerSpec],
    options: GradientOptions,
    *,
    seed: int,
    advance: Callable[[int], None],
) -> Mapping[str, Tensor]:
    """Second moments of label-free output gradients, per sample, summed over its positions.

    Args:
        model: a private copy in eval mode, parameters without gradient.
        feed: the samples.
        specs: the layers.
        options: how gradients are drawn.
        seed: of the draws.
        advance: called with the number of samples of every micro-batch that is done.

    Returns:
        (C_out, C_out) float32 by layer name, or (C_out,), the diagonal, of more than 8192 outputs; layers
        that no gradient reaches are left out. A gradient that arrives as None counts as zero.

    Raises:
        GradientError: the outputs have no gradient path to any layer.
        NonFiniteError: a gradient holds nan or inf.
    """
    # Half precision loses small gradients without a scale, and large ones with too much of it.
    is_half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    for scale in _HALF_LOSS_SCALES if is_half else (1.0,):
        sums = _sums_where_possible(model, feed, specs, options, seed, scale, advance)
        if all(bool(total.isfinite().all()) for total in sums.values()):
            break
    grams = {}
    for name, total in sums.items():
        if not total.isfinite().all():
            raise NonFiniteError(
                f"layer {name!r}: its output gradient holds nan or inf; check weights and data, "
                "or pass fisher=False"
            )
        mean = total / (len(feed.fit) * options.per_sample(len(feed.fit)))
        diagonal = mean if mean.ndim == 1 else mean.diagonal()
        # Products below that are rounding, and no longer positive semi-definite.
        is_reached = bool(diagonal.mean() > torch.finfo(torch.float32).tiny)
        grams[name] = mean.float() if is_reached else torch.zeros_like(mean, dtype=torch.float32)
    return grams


class _SwitchedOffError(Exception):
    """The model's own code switches gradients off."""


class _GradientsAnyway(TorchFunctionMode):
    """Every call of torch keeps gradients, also within the model's ``no_grad`` and ``inference_mode``."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs the call with gradients."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            return func(*args, **(kwargs or {}))


def _sums_where_possible(
    model: nn.Module,
    feed: Feed,
    specs: Sequence[LayerSpec],
    options: GradientOptions,
    seed: int,
    scale: float,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """As ``_gradient_sums``; where the model switches gradients off, with them, if it runs so."""
    try:
        return _gradient_sums(model, feed, specs, options, seed, scale, advance, stops=True)
    except _SwitchedOffError:
        pass
    try:
        return _gradient_sums(model, feed, specs, options, seed, scale, advance, keeps=True)
    except SlimrankError:
        # Such as work in place that only goes without gradients: layers behind the last switch have some.
        _let_go(model)
        return _gradient_sums(model, feed, specs, options, seed, scale, advance)


def _gradient_sums(
    model: nn.Module,
    feed: Feed,
    specs: Sequence[LayerSpec],
    options: GradientOptions,
    seed: int,
    scale: float,
    advance: Callable[[int], None],
    *,
    stops: bool = False,
    keeps: bool = False,
) -> dict[str, Tensor]:
    """Sums over the fit samples and draws of ``g g^T``, by layer.

    Args:
        model: as in ``collect_gradients``, and so are the others up to ``advance``.
        feed: the samples.
        specs: the layers.
        options: how gradients are drawn.
        seed: of the draws.
        scale: what the loss is multiplied by.
        advance: called for every micro-batch.
        stops: raise where the model's code switches gradients off.
        keeps: keep gradients there.

    Returns:
        (C_out, C_out) or (C_out,) float64 by layer.

    Raises:
        _SwitchedOffError: gradients are switched off, and ``stops``.
        GradientError: as in ``collect_gradients``.
    """
    sums: dict[str, Tensor] = {}
    state = _PassState()
    n_draws = options.per_sample(len(feed.fit))
    with opened(model, specs) as taps:
        _add_gradients(
            model, feed, taps, sums, options, seed, scale, state, n_draws, advance, stops=stops, keeps=keeps
        )
    if not sums and not state.has_none:
        raise GradientError(
            "no gradient reached any layer; pass outputs= that depend on the layers, or fisher=False"
        )
    return sums


def _add_gradients(
    model: nn.Module,
    feed: Feed,
    taps: Mapping[str, LayerSpec],
    sums: dict[str, Tensor],
    options: GradientOptions,
    seed: int,
    scale: float,
    state: "_PassState",
    n_draws: int,
    advance: Callable[[int], None],
    *,
    stops: bool,
    keeps: bool,
) -> None:
    """Adds ``g g^T`` of every draw for every sample; ``taps``: layers by the modules they are seen at."""
    for number, batch in enumerate(feed.stream(feed.fit)):
        size = batch.n_samples
        share = size / len(feed.fit)

        def hook_output(
            name: str, call: int, _x: Tensor, y: Tensor, share: float = share, number: int = number
        ) -> Tensor | None:
            state.is_off = state.is_off or not torch.is_grad_enabled()
            if not y.requires_grad:
                # Frozen layers, integer inputs, or the user's own no_grad. A clone, since what follows
                # may work in place, which a leaf forbids.
                with torch.inference_mode(mode=False), torch.enable_grad():
                    y = y.clone().detach().requires_grad_().clone()
            y.register_hook(_gradient_hook(taps[name], sums, share, seed, number, call, state, scale))
            return y

        with torch.enable_grad(), tap_layers(model, list(taps), hook_output):
            with _GradientsAnyway() if keeps else contextlib.nullcontext():
                outputs = pick_outputs(run(model, batch), options.outputs)
            for draw in range(n_draws):
                state.draw = draw
                generator = torch.Generator().manual_seed(layer_seed(seed, -1, number, draw))
                loss = sampled_loss(options.likelihood, outputs, generator, token_mask(batch), size)
                if stops and (state.is_off or not loss.requires_grad):
                    raise _SwitchedOffError
                if not loss.requires_grad:
                    raise GradientError(
                        "no gradient flows from the outputs to any layer (they are detached, or came out of "
                        "an argmax); pass outputs=lambda out: ... that picks differentiable tensors, wrap "
                        "the model so that it returns some, or pass fisher=False"
                    )
                _go_back(loss * scale, is_last=draw + 1 == n_draws)
        if keeps:
            _let_go(model)
        advance(size)


def _go_back(loss: Tensor, *, is_last: bool) -> None:
    try:
        loss.backward(retain_graph=not is_last)
    except (SlimrankError, MemoryError):
        raise
    except Exception as error:
        # Such as work in place on what the backward pass needs, which inference does not mind, or whatever
        # an autograd function of the user raises.
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise GradientError(
            f"the backward pass through the model failed ({text}); pass fisher=False, or mend the model"
        ) from error


def _let_go(model: nn.Module) -> None:
    """Frees buffers that were worked on in place, which ``no_grad`` would have kept out of the graph."""
    for buffer in model.buffers():
        if buffer.grad_fn is not None:
            buffer.detach_()


class _PassState:
    """What hooks tell of a pass, and what they are told.

    Attributes:
        draw: index of the draw whose backward pass is running.
        is_off: gradients were switched off while a layer ran.
        has_none: a gradient arrived as None.
    """

    draw = 0
    is_off = False
    has_none = False


def _gradient_hook(
    spec: LayerSpec,
    sums: dict[str, Tensor],
    share: float,
    seed: int,
    number: int,
    call: int,
    state: _PassState,
    scale: float,
) -> Callable[[Tensor | None], None]:
    """A function that adds ``g g^T`` of the gradients of one call of a layer to ``sums``."""

    def hook(gradient: Tensor | None) -> None:
        if gradient is None:
            # An autograd function behind the layer has none to give.
            state.has_none = True
            return
        rows = output_rows(spec, gradient.detach())
        n_rows = max(_MIN_BATCH_ROWS, ceil(GRADIENT_ROWS * share))
        weight = 1.0
        if len(rows) > n_rows:
            # 1000 keeps these seeds apart from those of the rows of inputs, where the last number is a call.
            generator = torch.Generator().manual_seed(layer_seed(seed, call, number, 1000 + state.draw))
            chosen = torch.randperm(len(rows), generator=generator, device="cpu")[:n_rows].to(rows.device)
            weight = len(rows) / n_rows
            rows = rows[chosen]
        rows = rows.float() / scale
        is_wide = rows.shape[1] > MAX_METRIC_WIDTH
        product = (rows.square().sum(0) if is_wide else gram(rows)).double() * weight
        if spec.name in sums:
            sums[spec.name] += product
        else:
            sums[spec.name] = product

    return hook
