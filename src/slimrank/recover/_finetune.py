# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with labels, never worse than what came in."""

import os
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from slimrank._errors import OptionError
from slimrank._live_view import shown_live_in_run_dir
from slimrank.forward import outside_inference_mode, run
from slimrank.recover._examples import Example, Inputs, open_training_data, read_with
from slimrank.recover._train import (
    MakeOptimizer,
    NormsChoice,
    Objective,
    OnEpoch,
    Options,
    ScheduleChoice,
    check_training,
    seeded_apart,
    train,
)
from slimrank.tensors import describe

LossFn = Callable[..., Tensor]


@shown_live_in_run_dir
@outside_inference_mode
def finetune(
    model: nn.Module,
    batches: Iterable[object],
    loss_fn: LossFn,
    *,
    epochs: int = 1,
    lr: float = 1e-4,
    inputs: Inputs = None,
    targets: Inputs = None,
    holdout: float | Iterable[object] = 0.2,
    norms: NormsChoice = "frozen",
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
    schedule: ScheduleChoice = "cosine",
    optimizer: MakeOptimizer | None = None,
    on_epoch: OnEpoch | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    in_place: bool = False,
    progress: bool = True,
    serve: bool = False,
    seed: int = 0,
) -> nn.Module:
    """A model trained on labelled batches, in its best state on held-out ones: never worse than what came in.

    Some batches are never trained on. Their mean loss, in eval mode, is measured before training and after
    every epoch, and the state with the lowest one is returned, be it the incoming one. A run that diverges
    stops, says so (``logging``, "slimrank.recover") and loses nothing. Losses are means over samples.

    Args:
        model: e.g. ``result.model``; parameters in float32 (float16 and bfloat16 round small steps away).
            Those without ``requires_grad`` stay as they are.
        batches: a re-iterable of pairs (inputs, targets); inputs are a tensor (first argument), a tuple
            (positional) or a dict (keywords). Tensors are moved to the device of the model. A sequence is
            taken in another order in every epoch, a loader in its own.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar: the mean over the batch. Outputs are what the model
            returns.
        epochs: how often the batches are trained on, from 1.
        lr: the highest learning rate.
        inputs: a function of what the loader yields; None for the first of a pair.
        targets: a function of what the loader yields; None for the second of a pair.
        holdout: share of the batches that are held out, in (0, 1), at least one (a single batch serves both,
            and a warning says so); these must be the same in every pass. Or a re-iterable of other batches
            for that, which leaves ``batches`` free to shuffle and augment.
        norms: "frozen" keeps running statistics of batch norms as they are; "reestimated" trains with those
            of each batch, and averages them over the training batches after every epoch.
        weight_decay: of the optimiser.
        clip_norm: norm that gradients are clipped to; None for no clipping.
        schedule: "cosine" lets the learning rate fall to zero over the run; "constant" does not. Both rise
            over the first 5 % of the steps.
        optimizer: called as ``optimizer(parameters, lr=, weight_decay=)``, e.g. ``torch.optim.SGD``; None
            for AdamW.
        on_epoch: called with an ``Epoch`` after each: losses, learning rate, whether it is the best so far.
        run_dir: where the run is kept after every epoch, so that a killed one goes on at the last; on the CPU
            it ends as if nothing had happened, bit for bit. None for nowhere. Its events are there as well.
        in_place: train the caller's own module (for ``on_layer``) instead of a copy.
        progress: show a bar on stderr.
        serve: show the run in the browser (``slimrank.serve``) while this call lasts; needs ``run_dir``. The
            address is written to stderr, once.
        seed: of held-out batches, order and dropout; global generators are left as they are.

    Returns:
        The trained model, training flags and ``requires_grad`` as in ``model``.

    Raises:
        BatchesTypeError: batches that cannot be read several times, or that are no pairs.
        BatchesError: empty or changing batches, or ones that the model refuses.
        OptionError: an option out of range, a ``loss_fn`` that gives no scalar, or ``serve`` without
            ``run_dir``.
        ModelError: nothing to train, or parameters in half precision.
        GradientError: a loss without gradient.
        NonFiniteError: inputs, or the held-out loss at the start, hold nan or inf.
        StudyError: ``run_dir`` holds another run.

    Example:
        >>> import torch
        >>> import slimrank as sr
        >>> model = torch.nn.Linear(4, 2)
        >>> batches = [(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)) for _ in range(5)]
        >>> loss_fn = torch.nn.CrossEntropyLoss()
        >>> tuned = sr.finetune(model, batches, loss_fn, epochs=2, lr=0.01, progress=False)
        >>> x, y = batches[0]
        >>> bool(loss_fn(tuned(x), y) < loss_fn(model(x), y))
        True
    """
    options = Options(
        epochs=epochs,
        lr=lr,
        norms=norms,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=schedule,
        seed=seed,
    )
    check_training(model, options, optimizer, on_epoch)
    if not callable(loss_fn):
        raise OptionError(
            f"loss_fn is a {type(loss_fn).__name__}; give a function of outputs and targets, "
            "e.g. torch.nn.CrossEntropyLoss()"
        )
    if isinstance(loss_fn, type):
        raise OptionError(f"loss_fn is the class {loss_fn.__name__}; give one of it: {loss_fn.__name__}()")

    def loss(model: nn.Module, example: Example) -> Tensor:
        return _checked_loss(loss_fn, run(model, example.batch), example)

    objective = Objective(
        name="finetune",
        loss=loss,
        judge=lambda model, example: float(loss(model, example)),
        facts={"loss_fn": describe(loss_fn)},
    )
    with seeded_apart(model, options.seed):
        read = read_with(inputs, targets, model, labelled=True)
        data = open_training_data(batches, read, model, holdout=holdout, seed=options.seed)
        return train(
            model,
            data,
            objective,
            options,
            optimizer=optimizer,
            on_epoch=on_epoch,
            run_dir=run_dir,
            in_place=in_place,
            progress=progress,
        )


def _checked_loss(loss_fn: LossFn, outputs: object, example: Example) -> Tensor:
    """The loss of one batch, a scalar; errors of the caller's function name the batch."""
    where = f"on {example.batch.where} (outputs {_described(outputs)}, targets {_described(example.targets)})"
    try:
        loss: object = loss_fn(outputs, example.targets)
    except Exception as error:
        raise OptionError(
            f"loss_fn failed {where}: {type(error).__name__}: {error}; make it fit what the model returns "
            "and what the batches hold"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise OptionError(
            f"loss_fn gave {_described(loss)} {where}; give a scalar tensor, the mean over the batch"
        )
    return loss.reshape(())


def _described(value: object) -> str:
    """Kind, dtype and shape of a value, for messages."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"
