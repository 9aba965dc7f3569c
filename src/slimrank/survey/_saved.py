# SPDX-License-Identifier: Apache-2.0
"""A study on disk with its model and its data: what a record of it lacks."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from slimrank._errors import StudyError
from slimrank.calibrate import OwnLossFn
from slimrank.files import Json, Store
from slimrank.forward import OutputChoice, map_tensors
from slimrank.measured import FUNCTION, GRADIENT_FILE, StudyRecord, write_facts, write_measurements
from slimrank.survey._input_files import batches_from_files, batches_to_files
from slimrank.survey._session import DataSource, Session
from slimrank.tensors import read_tensors, write_tensors


def write_study(
    store: Store, record: StudyRecord, grams: Mapping[str, Tensor], session: Session | None
) -> None:
    """Writes a study whole; files of an earlier study in the directory are replaced.

    Args:
        store: the directory.
        record: what to write; its options, outputs and inputs are taken from the session.
        grams: second moments of output gradients, (C_out, C_out) or diagonal, by layer.
        session: of the study; None where it was read without a model, so that it has no data.

    Raises:
        FileError: it cannot be written.
    """
    record = replace(
        record,
        options=None if session is None else session.options,
        outputs=None if session is None else _outputs_to_json(session.outputs),
        has_loss=session is not None and session.likelihood.loss is not None,
    )
    write_measurements(store, record, None if session is None else session.feed.digests)
    write_tensors(store.path_of(GRADIENT_FILE), grams)
    no_inputs: str | None = "the study has no data"
    if session is not None:
        feed = session.feed
        no_inputs = batches_to_files(store, [feed.read(raw) for raw in feed.batches])
    write_facts(store, replace(record, no_inputs=no_inputs))


def saved_grams(store: Store) -> dict[str, Tensor]:
    """The second moments of output gradients of a study on disk, by layer, on the CPU.

    Raises:
        FileError: the file is missing, truncated or altered.
    """
    return read_tensors(store.root / GRADIENT_FILE)


def saved_outputs(record: StudyRecord, outputs: OutputChoice) -> OutputChoice:
    """Which outputs matter in a study that was read.

    Args:
        record: of the study.
        outputs: as the caller gave it; None for as in the study.

    Raises:
        StudyError: the study was made with a function, and none is given.
    """
    if outputs is not None:
        return outputs
    if record.outputs == FUNCTION:
        raise StudyError(
            "the study was made with outputs= as a function, which no file can keep; pass the same outputs= "
            "again"
        )
    if isinstance(record.outputs, list):
        return tuple(key for key in record.outputs if isinstance(key, str | int))
    return record.outputs if isinstance(record.outputs, str | int) else None


def check_saved_loss(record: StudyRecord, loss: OwnLossFn | None) -> None:
    """Refuses to go on without the loss that a study was made with.

    Raises:
        StudyError: it was made with one, and none is given.
    """
    if record.has_loss and loss is None:
        raise StudyError(
            "the study was made with loss=, a function that no file can keep; pass the same loss= again"
        )


def saved_source(
    store: Store,
    record: StudyRecord,
    outputs: OutputChoice,
    loss: OwnLossFn | None,
    device: torch.device,
) -> DataSource:
    """The inputs that a study kept.

    Args:
        store: the directory.
        record: what it holds besides.
        outputs: which outputs matter.
        loss: the caller's, or None.
        device: of the model; the inputs are moved there.

    Returns:
        The data as a loader would yield them.

    Raises:
        StudyError: the study kept none; the message says why.
        FileError: a file is missing, truncated or altered.
    """
    if record.no_inputs is not None:
        raise StudyError(f"{store.root} holds no inputs ({record.no_inputs}); pass batches= to apply plans")

    def move(raw: object) -> object:
        return map_tensors(raw, lambda tensor: tensor.to(device))

    return DataSource(batches=batches_from_files(store), inputs=move, outputs=outputs, loss=loss)


def _outputs_to_json(outputs: OutputChoice) -> Json:
    if callable(outputs):
        return FUNCTION
    return outputs if outputs is None or isinstance(outputs, str | int) else list(outputs)
