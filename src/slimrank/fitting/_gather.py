# SPDX-License-Identifier: Apache-2.0
"""Rows of one layer, cut out of what reaches it in the original and in the new model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slimrank.calibrate import draw_positions, input_rows, layer_seed, output_rows_at, rows_wanted, token_mask
from slimrank.capture import Epilogue
from slimrank.cost import SAMPLING, block_width, clipped_row_bytes, keeps_rows, row_cap, row_view, row_width
from slimrank.fitting._context import BuildContext, PendingLayer
from slimrank.fitting._goals import is_scarce, wanted_outputs
from slimrank.fitting._layer_tasks import LayerTask
from slimrank.fitting._rows import Gathered, Rows
from slimrank.forward import Lockstep, OneByOne
from slimrank.linalg import Clipping, MomentSums, has_usable_gain
from slimrank.records import LayerSpec
from slimrank.surgery import dense_weight

# Rows that are kept for the fit behind a clipping, unless the layer is wide. More would move the wanted
# outputs more surely; they are held beside the moments.
_CLIPPED_ROWS = 16_384
# Numbers in the rows that are cut out and summed at once, about, but at least so many rows. Fewer would cost
# more calls; more would leave the cache, and blocks from 32 MB on are fetched from the system each time.
_ROW_NUMBERS = 2**20
_MIN_ROWS_AT_ONCE = 1024

Forwards = Lockstep | OneByOne


@dataclass(frozen=True, slots=True, eq=False)
class BatchAtLayer:
    """One batch at a layer, in the original and in the new model.

    Attributes:
        x, x_hat: inputs of the layer; None where the batch does not reach it.
        y: its output in the original.
        shortcut, shortcut_hat: what will be added to its output; None where that is not known.
    """

    x: Tensor | None
    x_hat: Tensor | None
    y: Tensor | None
    shortcut: Tensor | None
    shortcut_hat: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OutputPath:
    """What happens to the outputs y of a layer that stay: ``clip(gains * y + offset + shortcut)``.

    Attributes:
        gains, offset: (O',) or () float32, of the batch norm; 1 and 0 where there is none.
        clipping: None where there is none.
        has_shortcut: whether something is added.
    """

    gains: Tensor
    offset: Tensor
    clipping: Clipping | None
    has_shortcut: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PartRows:
    """Rows of a part of one batch.

    Attributes:
        original_inputs: (S, D), in the original; None where they are not needed.
        rows: in the new model.
        has_lost: whether the shortcut lost something on its way.
        is_path_known: whether all that happens to the outputs could be read.
    """

    original_inputs: Tensor | None
    rows: Rows
    has_lost: bool
    is_path_known: bool


def run_to_layer(before: Forwards, after: Forwards, name: str) -> Iterable[BatchAtLayer]:
    """Runs both networks up to a layer; forwards one by one only as each batch is asked for.

    Args:
        before: forwards of the original.
        after: of the new model, over the batches that reach the layer.
        name: of the layer.

    Returns:
        What reaches the layer, per batch.
    """
    if isinstance(before, OneByOne) and isinstance(after, OneByOne):
        pairs = zip(before.each(name), after.each(name), strict=True)
        return (BatchAtLayer(at.x, new.x, at.y, at.shortcut, new.shortcut) for at, new in pairs)
    inputs = zip(before.advance(name), after.advance(name), strict=True)
    shortcuts = zip(before.shortcut(name), after.shortcut(name), strict=True)
    return [
        BatchAtLayer(x, x_hat, y, shortcut, shortcut_hat)
        for (x, x_hat), y, (shortcut, shortcut_hat) in zip(inputs, before.outputs(), shortcuts, strict=True)
    ]


def gather(context: BuildContext, layer: PendingLayer, batches: Iterable[BatchAtLayer]) -> Gathered | None:
    """Rows of a layer, in the original and in the new model.

    Args:
        context: of the build.
        layer: to be fitted.
        batches: what reaches it, per batch that is alive there.

    Returns:
        Sums over the rows, and some of the rows; None where all calls of the layer share moments.
    """
    task = layer.task
    if task.spec.name in context.shared_moments:
        return None
    path = _output_path(context, layer)
    gathered = _empty_sums(layer, path)
    # With plenty of rows a fit to the original's inputs brings nothing, so they are not summed.
    needs_original = not context.data.sequential or is_scarce(context, task)
    step = _clipped_row_step(task)
    n_fit_batches = context.alive[task.spec.name].n_fit_batches
    is_unpaired = isinstance(batches, Sequence) and any(_is_unpaired(layer, batch) for batch in batches)
    for batch_index, reaching in enumerate(batches):
        is_fitted = batch_index < n_fit_batches
        # From the first batch on where all are there: rows of equal number may be others, too.
        is_unpaired = is_unpaired or _is_unpaired(layer, reaching)
        batch = _as_in_original(reaching) if is_unpaired else reaching
        gathered.is_unpaired = is_unpaired
        if is_fitted and not gathered.has_moved:
            gathered.has_moved = _has_moved(layer, batch)
        for part in _batch_rows(context, layer, path, batch_index, batch, needs_original and is_fitted):
            gathered.has_moved = gathered.has_moved or part.has_lost
            if not part.is_path_known:
                # Of what is clipped a part is missing, so nothing is known of what is left of it.
                gathered.clipping = None
            if is_fitted:
                gathered.add(part.original_inputs, part.rows, step=step)
            else:
                gathered.held_out.append(part.rows)
    return gathered


def _is_unpaired(layer: PendingLayer, batch: BatchAtLayer) -> bool:
    """Whether other rows of a batch reach a layer than in the original, as where a router chooses experts."""
    if layer.is_changed:
        # It is fitted to its own outputs, whatever reached it in the original.
        return False
    if batch.x is None or batch.x_hat is None:
        return (batch.x is None) != (batch.x_hat is None)
    return not have_same_positions(layer.task.spec, batch.x, batch.x_hat)


def _as_in_original(batch: BatchAtLayer) -> BatchAtLayer:
    """A batch as if it reached the new model as it reaches the original."""
    return replace(batch, x_hat=batch.x, shortcut_hat=batch.shortcut)


def _output_path(context: BuildContext, layer: PendingLayer) -> _OutputPath:
    """What happens to the outputs of a layer, as the context knows it."""
    task = layer.task
    epilogue = context.epilogues.get(task.spec.name, Epilogue())
    if layer.is_changed:
        # A layer that on_layer changed is fitted to its own, changed output, whatever follows.
        epilogue = Epilogue()
    device = dense_weight(layer.current).device
    affine = affine_of(context.original_layers, epilogue.norm)
    gains, offset = (task.staying_rows(part.to(device)) for part in affine)
    clipping = None
    if epilogue.bounds is not None:
        low, high = epilogue.bounds
        clipping = Clipping(gains=gains.expand(_n_outputs(task)), low=low, high=high)
    return _OutputPath(
        gains=gains, offset=offset, clipping=clipping, has_shortcut=epilogue.shortcut is not None
    )


def affine_of(layers: Mapping[str, nn.Module], norm: str | None) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode does to each channel: ``gain * y + offset``.

    Args:
        layers: modules by name.
        norm: name of the batch norm; None for none.

    Returns:
        Gain and offset, (C_out,) float32 each; () for no norm, 1 and 0.

    Raises:
        TypeError: the norm has no running statistics.
    """
    if norm is None:
        return torch.ones(()), torch.zeros(())
    module = layers[norm]
    mean, variance = module.running_mean, module.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise TypeError(f"{norm} is a {type(module).__name__} without running statistics")
    gain = (variance.double() + float(str(module.eps))).rsqrt()
    if isinstance(module.weight, Tensor):
        gain = gain * module.weight.detach().double()
    offset = -mean.double() * gain
    if isinstance(module.bias, Tensor):
        offset = offset + module.bias.detach().double()
    return gain.float(), offset.float()


def _empty_sums(layer: PendingLayer, path: _OutputPath) -> Gathered:
    """Sums with as many columns as the rows of a layer will have, still empty."""
    task = layer.task
    keep_rows = keeps_rows(task.spec)
    n_columns = row_width(task.slimmed)
    # Rows of a changed layer are those of the new model on both sides.
    original = task.slimmed if layer.is_changed else task.spec
    return Gathered(
        original_sums=MomentSums(row_width(original), keep_rows=keep_rows, n_groups=original.groups),
        joint_sums=MomentSums(
            n_columns, keep_rows=keep_rows, other_width=_n_outputs(task), n_groups=task.n_groups
        ),
        clipping=path.clipping,
        # A layer that lost columns reads another input than in the original.
        has_moved=task.columns is not None,
    )


def _clipped_row_step(task: LayerTask) -> int:
    """Step between the rows that are kept for the fit behind a clipping."""
    n_columns = row_width(task.slimmed)
    # Several rows per column, so that the change of the covariance is measured; as many as the bytes allow.
    wanted = max(_CLIPPED_ROWS, 8 * block_width(task.slimmed))
    limit = min(wanted, SAMPLING.clipped_rows // clipped_row_bytes(n_columns, _n_outputs(task)))
    return max(1, row_cap(task.spec) // max(limit, 1))


def _has_moved(layer: PendingLayer, batch: BatchAtLayer) -> bool:
    """Whether the input of a layer differs from that in the original."""
    # A changed layer is compared with itself: to its own inputs nothing has moved.
    if layer.is_changed or batch.x is None or batch.x_hat is None:
        return False
    return batch.x.shape != batch.x_hat.shape or not torch.equal(batch.x, batch.x_hat)


def _batch_rows(
    context: BuildContext,
    layer: PendingLayer,
    path: _OutputPath,
    batch_index: int,
    batch: BatchAtLayer,
    needs_original: bool,
) -> Iterator[_PartRows]:
    """Rows of one batch, part by part; none where it does not reach the layer."""
    task = layer.task
    # A layer that on_layer changed is fitted to itself, so its rows need no others beside them.
    x, x_hat = (batch.x_hat if layer.is_changed else batch.x), batch.x_hat
    if x is None or x_hat is None:
        return
    # Inputs as in the original have all channels; those of the new model only the ones that stay.
    columns = task.columns if batch.x is batch.x_hat and not layer.is_changed else None
    n_at_once = max(_MIN_ROWS_AT_ONCE, _ROW_NUMBERS // row_width(task.spec))
    # The new layer pads and strides as the original does; only channels are fewer.
    for positions in _drawn_positions(context, task, batch_index, x).split(n_at_once):
        rows_hat = input_rows(layer.original, task.spec, x_hat, positions).float()
        if columns is not None:
            rows_hat = rows_hat[:, columns.to(rows_hat.device)]
        y = _known_outputs(layer, batch)
        rows = None
        if layer.is_changed:
            rows = rows_hat
        elif y is None or needs_original:
            rows = input_rows(layer.original, task.spec, x, positions).float()
        if y is not None:
            wanted = task.slimmed_outputs(output_rows_at(task.spec, y, positions).float())
        elif rows is not None:
            wanted = wanted_outputs(layer, rows, rows_hat)
        offsets = path.offset.expand_as(wanted)
        lost = None
        if path.has_shortcut:
            added, lost = _shortcut_rows(task, batch, positions)
            if added is not None and lost is not None:
                wanted = wanted + _in_units_of_output(lost, path.gains)
                offsets = offsets + added
        yield _PartRows(
            original_inputs=rows if needs_original else None,
            rows=Rows(inputs=rows_hat, outputs=wanted, offsets=offsets),
            has_lost=lost is not None and bool(lost.any()),
            is_path_known=lost is not None or not path.has_shortcut,
        )


def _known_outputs(layer: PendingLayer, batch: BatchAtLayer) -> Tensor | None:
    """Outputs of a layer in the original, where they are what is wanted, precisely."""
    # A transposed convolution adds up its taps, and a layer that on_layer changed has outputs of its own.
    # A recurrent layer makes more of them than its input matrix does.
    is_own = not layer.task.is_transposed and not layer.task.spec.is_recurrent
    if not is_own or layer.is_changed or batch.y is None:
        return None
    return batch.y if batch.y.dtype in (torch.float32, torch.float64) else None


def _drawn_positions(context: BuildContext, task: LayerTask, batch_index: int, x: Tensor) -> Tensor:
    """Positions whose rows are taken from one batch: the same in both models, and in every run."""
    alive = context.alive[task.spec.name]
    batch = alive.batches[batch_index]
    share = batch.n_samples / max(alive.n_fit_samples, 1)
    # A held-out batch may be larger than all samples that are fitted to.
    count = min(rows_wanted(task.spec, share), row_cap(task.spec))
    seed = layer_seed(context.data.seed, context.layer_indices[task.spec.name], batch_index, 0)
    return draw_positions(task.spec, x, count, torch.Generator().manual_seed(seed), token_mask(batch))


def _shortcut_rows(
    task: LayerTask, batch: BatchAtLayer, positions: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What is added to the outputs in the new model, and what that lost against the original.

    Args:
        task: of the layer.
        batch: what reaches it.
        positions: (S,) int64, on the device of the outputs.

    Returns:
        Two (S, O') float32; None each where the shortcut was read on one sample, but is absent here.
    """
    if batch.shortcut is None or batch.shortcut_hat is None:
        return None, None
    in_original = task.staying_columns(output_rows_at(task.spec, batch.shortcut, positions).float())
    if batch.shortcut_hat is batch.shortcut:
        return in_original, torch.zeros_like(in_original)
    added = output_rows_at(task.spec, batch.shortcut_hat, positions).float()
    return added, in_original - added


def _in_units_of_output(lost: Tensor, gains: Tensor) -> Tensor:
    """(S, O') what the layer's output has to add, so that the sum has again what the shortcut lost.

    Channels that hardly reach the sum cannot make up for it.
    """
    return torch.where(has_usable_gain(gains.expand(lost.shape[1])), lost / gains, 0.0)


def have_same_positions(spec: LayerSpec, x: Tensor, x_hat: Tensor) -> bool:
    """Whether two inputs of a layer differ in their channels alone."""
    channel = x.ndim - 1 if spec.reads_last_dim else x.ndim - 1 - len(spec.kernel)
    return x.ndim == x_hat.ndim and all(
        a == b for dim, (a, b) in enumerate(zip(x.shape, x_hat.shape, strict=True)) if dim != channel
    )


def _n_outputs(task: LayerTask) -> int:
    """O': rows of the layer's matrix, once channels are gone."""
    return row_view(task.slimmed).n_outputs
