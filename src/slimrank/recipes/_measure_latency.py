# SPDX-License-Identifier: Apache-2.0
"""The latency table of a study."""

import os
from collections.abc import Iterable

from slimrank._study import Study, session_of, shown_live_of_study
from slimrank.forward import Batch, kept_text, out_of_memory_told, outside_inference_mode
from slimrank.latencies import Latencies
from slimrank.latency import check_conditions, measure_variants


@shown_live_of_study
@outside_inference_mode
def measure_latency(
    study: Study,
    *,
    backend: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    precision: str = "float32",
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
    serve: bool = False,
) -> Latencies:
    """What each layer takes inside the network, in the runtime, on this machine, in every form of a plan.

    Some fifteen variants of the whole network, in which each layer takes other forms and sizes, are exported
    and run with the runtime's own profile: fusions, layouts and caches are those of real networks, and one
    run measures all layers. Of "torch-compile", which has no profile, some twenty are run, and the formulas
    of "torch" are scaled to their times. Weights of the variants are random; the model is not changed.

    Args:
        study: with its model.
        backend: "onnxruntime" (needs ``pip install 'slimrank[export]'``), "openvino" (``pip install
            'slimrank[openvino]'``) or "executorch" (``pip install 'slimrank[executorch]'``) for an exported
            file; "torch", "torch-channels-last" or "torch-compile" for PyTorch itself on the CPU, the last
            one with a C++ compiler; "cuda" for PyTorch on the GPU.
        threads: of the runtime.
        batch: samples in the batch: what is fast for one sample need not be for many.
        precision: of the variants: "float32", or "int8" for files as ``slimrank.export(quantize="int8")``
            writes them. Ratios are shares of the time of the original in float32 either way.
        path: of a JSON file, written after every variant; if it exists, the table in it is gone on with.
        progress: show a bar on stderr.
        serve: as in ``slimrank.study``; shows the study's ``run_dir``.

    Returns:
        The table.

    Raises:
        UnknownNameError: no such backend or precision.
        MissingPackageError: the runtime is not installed; the message has the line for pip.
        OptionError: another option out of range, no study, or no GPU for "cuda".
        StudyError: the study was loaded without a model.
        LatencyError: ``path`` holds a table of another machine, runtime, version, batch or network, or the
            network cannot be measured in this runtime as it is.
        ExportError: the network cannot be written for the runtime.
        FileError: ``path`` cannot be read or written.
        OutOfMemoryError: memory is used up.
    """
    session = session_of(study)
    threads, batch = check_conditions(backend=backend, precision=precision, threads=threads, batch=batch)

    def batches() -> Iterable[Batch]:
        return session.feed.stream(range(session.feed.n_samples))

    phases = session.phases(shown=progress)
    kept = kept_text(path, keyword="path")
    with out_of_memory_told(lambda: f"phase {phases.name!r}", kept):
        return measure_variants(
            session.original,
            batches,
            study.structure,
            methods=study.methods,
            has_bias=study.has_bias,
            backend=backend,
            threads=threads,
            batch=batch,
            precision=precision,
            path=path,
            phases=phases,
        )
