# SPDX-License-Identifier: Apache-2.0
"""The latency table of a study on another machine."""

import os
from collections.abc import Iterable
from pathlib import Path

from slimrank._errors import OptionError
from slimrank._progress import Phases
from slimrank._study import Study, session_of
from slimrank.forward import Batch, out_of_memory_told, outside_inference_mode
from slimrank.latencies import Latencies
from slimrank.latency import check_conditions, collect_variants, prepare_variants


@outside_inference_mode
def prepare_latency(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    threads: int = 1,
    batch: int = 1,
    progress: bool = True,
) -> Path:
    """Writes a folder from which a latency table is measured on another machine, in onnxruntime.

    It holds the variants of ``slimrank.measure_latency`` as ONNX files, one batch of inputs, and
    ``measure.py``. Copy it to the machine and run ``python measure.py`` in it: that needs Python 3.10 or
    later, numpy and onnxruntime, neither slimrank nor torch, and goes on where it was when it is stopped.
    Copy ``measured.json`` back into the folder, and read it with ``slimrank.collect_latency``.

    Args:
        study: with its model.
        folder: a new one, in an existing one; it is written whole or not at all. It holds weights of the
            model, and as many bytes as some ten copies of it.
        threads: of the runtime there.
        batch: samples in the batch: what is fast for one sample need not be for many.
        progress: show a bar on stderr.

    Returns:
        The folder.

    Raises:
        MissingPackageError: onnxruntime is not installed here either; the message has the line for pip.
        OptionError: another option out of range, or no study.
        StudyError: the study was loaded without a model.
        NotEmptyError: the folder holds something.
        FileError: it cannot be written.
        LatencyError: the network takes another batch only.
        ExportError: the network cannot be written as ONNX.
        OutOfMemoryError: memory is used up.
    """
    session = session_of(study)
    threads, batch = check_conditions(
        backend="onnxruntime", precision="float32", threads=threads, batch=batch
    )

    def batches() -> Iterable[Batch]:
        return session.feed.stream(range(session.feed.n_samples))

    target, phases = _folder_of(folder), Phases(shown=progress)
    with out_of_memory_told(lambda: f"phase {phases.name!r}", "nothing was written"):
        prepare_variants(
            session.original,
            batches,
            study.structure,
            methods=study.methods,
            has_bias=study.has_bias,
            threads=threads,
            batch=batch,
            folder=target,
            phases=phases,
        )
    return target


def collect_latency(
    study: Study, folder: str | os.PathLike[str], *, path: str | os.PathLike[str] | None = None
) -> Latencies:
    """The latency table that another machine measured.

    Args:
        study: that the folder was prepared for, or one of the same network; it needs no model.
        folder: that ``slimrank.prepare_latency`` wrote, with the ``measured.json`` of the machine:
            ``prepared.json`` and that file are read.
        path: of a JSON file that the table is written to.

    Returns:
        The table; its machine and the version of onnxruntime are those of the machine that measured. Plan
        with it by ``study.plan(latency=, latencies=)``.

    Raises:
        OptionError: no study.
        LatencyError: the folder is of another network or other methods; nothing or not all of it was
            measured, or in another folder; a file is damaged. The message names it.
        FileError: a file is missing, or cannot be read or written.
    """
    if not isinstance(study, Study):
        raise OptionError(f"study is a {type(study).__name__}; give what slimrank.study returned")
    return collect_variants(study.structure, study.methods, _folder_of(folder), path)


def _folder_of(folder: str | os.PathLike[str]) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise OptionError(f"folder is a {type(folder).__name__}; give a path, e.g. 'there'")
    return Path(folder)
