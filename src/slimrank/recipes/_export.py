# SPDX-License-Identifier: Apache-2.0
"""Any model to a file of a runtime."""

import os
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from slimrank._errors import OptionError
from slimrank._result import Result
from slimrank.calibrate import checked_batches
from slimrank.deploy import Precision, Reading, export_model
from slimrank.forward import OutputChoice, check_outputs, outside_inference_mode
from slimrank.interop import receive
from slimrank.records import Exported, LikelihoodChoice, likelihood_of
from slimrank.survey import Inputs


@outside_inference_mode
def export(
    model: nn.Module | Result,
    path: str | os.PathLike[str],
    batches: Iterable[object],
    *,
    format: str = "onnx",
    quantize: Precision | None = None,
    max_quant_drop: float | None = None,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    original: nn.Module | None = None,
    batch: int = 1,
    threads: int = 1,
) -> Exported:
    """Writes a model to a file that another runtime reads, checked and timed in that runtime.

    The file takes batches of any number of samples where the model allows that; a note says where not. It is
    run on real samples and compared with the model; a file that answers otherwise is not written.

    Args:
        model: any module, compressed or not; it is not changed. A result brings its original and how its
            outputs are read.
        path: of the file: ``.onnx``, ``.pt2``, ``.xml`` or ``.pte``. An existing one is replaced, whole or
            not at all; folders are not made.
        batches: real inputs, as in ``slimrank.study``; a few samples are enough.
        format: "onnx" (for onnxruntime and others; needs ``pip install 'slimrank[export]'``), "torch" (a
            program of ``torch.export``), "openvino" (for Intel's OpenVINO; needs ``pip install
            'slimrank[openvino]'``; weights go into a ``.bin`` file beside the ``.xml`` file, and are run in
            float32; OpenVINO's reports to its makers are off where nothing imported it before) or
            "executorch" (for phones, XNNPACK on the CPU; needs ``pip install 'slimrank[executorch]'``; the
            file takes up to 8 samples at a time, or ``batch`` where that is more).
        quantize: "int8" (weights and activations; up to 256 of the samples calibrate it), "int8_weights"
            (weights only, or activations measured while it runs: for models of ``nn.Linear``) or None. Inputs
            and outputs stay in float. What comes back then compares with the model in float.
        max_quant_drop: divergence per sample that int8 may add: as many layers stay in float as it takes.
            None keeps none in float for that, and refuses a file whose outputs have little left;
            ``float("inf")`` takes any.
        inputs: as in ``slimrank.study``.
        outputs: as in ``slimrank.study``: the outputs whose classes are compared. The file has all of them.
        likelihood: as in ``slimrank.study``: which outputs are classes.
        original: the model before compression, to be timed in the same runtime; None for no such time.
        batch: samples in the batches that are timed, and in those of a file that takes one number only.
        threads: of the runtime while it is timed. Of "executorch" they belong to the process: ``.pte`` files
            that it loaded before with another number must be loaded again.

    Returns:
        What was written, how exact and how fast it is.

    Raises:
        UnknownNameError: no such format.
        MissingPackageError: a package of the format is not installed; the message has the line for pip.
        ExportError: the model cannot be written in this format, or the file answers otherwise than the model;
            the message names operation and module. Or an int8 file has little left of the outputs.
        OptionError: the format has no such int8, or an option is out of range.
        FileError: the file cannot be written.
        SlimrankError: as in ``slimrank.study``, for the batches.
    """
    if isinstance(model, Result):
        if original is not None or outputs is not None or likelihood != "auto":
            raise OptionError(
                "original=, outputs= and likelihood= are given beside a result, which brings its own; pass "
                "result.model to have others"
            )
        return model.export(
            path,
            format=format,
            quantize=quantize,
            max_quant_drop=max_quant_drop,
            batches=batches,
            inputs=inputs,
            batch=batch,
            threads=threads,
        )
    received = receive(model, to_export=True)
    model = received.model
    if original is not None:
        original = receive(original, to_export=True).model
    check_outputs(outputs)
    exported = export_model(
        model,
        path,
        checked_batches(batches, inputs, model),
        format=format,
        reading=Reading(outputs=outputs, likelihood=likelihood_of(likelihood)),
        original=original,
        batch=batch,
        threads=threads,
        quantize=quantize,
        max_quant_drop=max_quant_drop,
    )
    return replace(exported, notes=(*received.notes, *exported.notes)) if received.notes else exported
