# SPDX-License-Identifier: Apache-2.0
"""Forwards that start at a layer, over batches that are known: what lies before it is handed out."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, OutputError
from slimrank.forward._batch import Batch
from slimrank.forward._outputs import OutputChoice, pick_outputs
from slimrank.forward._record import LayerReached, Record, handing_out, recording
from slimrank.forward._run import run


class Replay:
    """Repeated forwards of one unchanged model over the same batches, from a layer onwards.

    Args:
        model: a private copy in eval mode; only the layer under test may differ between forwards.
        batches: what to run.
        max_bytes: outputs held at most; batches beyond it are run from the start, or from an earlier layer.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Batch], *, max_bytes: int) -> None:
        self._model = model
        self._batches = list(batches)
        self._max_bytes = max_bytes
        self._records: dict[int, Record] = {}
        self._is_off = False

    def start_at(
        self,
        layer: str,
        references: Sequence[Mapping[str, Tensor]],
        outputs: OutputChoice,
        touched: Collection[str] = (),
    ) -> None:
        """Records what lies before a layer, so that later forwards skip it.

        A model whose modules share state (in-place work on what others read, attributes set in a forward)
        gives something else when parts of it are skipped. That is looked for at every layer, and ends it.

        Args:
            layer: dotted name; call in execution order, the model unchanged.
            references: what the whole model gives, per batch.
            outputs: which outputs are compared.
            touched: other modules that will differ; a batch that reaches one of them first is run from the
                start.
        """
        if self._is_off:
            return
        for index in range(len(self._batches)):
            self._record(index, layer, (layer, *touched))
        if self._records and not self._agrees(references, outputs):
            self._is_off = True
            self._records.clear()

    def _record(self, index: int, layer: str, touched: Collection[str]) -> None:
        known = self._records.get(index)
        if known is not None and not all(known.serves(self._model, name) for name in touched):
            del self._records[index]
            known = None
        try:
            # In this order, so that what is handed out is recorded again.
            with (
                torch.no_grad(),
                handing_out(self._model, known),
                recording(self._model, layer, stops=True) as recorder,
            ):
                run(self._model, self._batches[index])
        except LayerReached:
            # What comes after the layer is not needed for the record.
            pass
        record = recorder.record
        others = sum(held.n_bytes for batch_index, held in self._records.items() if batch_index != index)
        if record is None or not record.outputs or others + record.n_bytes > self._max_bytes:
            return
        if all(record.serves(self._model, name) for name in touched):
            self._records[index] = record

    def _agrees(self, references: Sequence[Mapping[str, Tensor]], outputs: OutputChoice) -> bool:
        # One batch shows it, the smallest; which modules share state does not depend on the samples.
        index = min(self._records, key=lambda index: self._batches[index].n_samples)
        try:
            picked = pick_outputs(self._forward(index, self._records[index]), outputs)
        except (BatchesError, OutputError):
            return False
        return all(torch.equal(tensor, picked[name]) for name, tensor in references[index].items())

    def stream(self) -> Iterator[object]:
        """Results of the model, batch after batch."""
        for index in range(len(self._batches)):
            yield self._forward(index, self._records.get(index))

    def _forward(self, index: int, record: Record | None) -> object:
        with torch.no_grad(), handing_out(self._model, record):
            return run(self._model, self._batches[index])
