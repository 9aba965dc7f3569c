# SPDX-License-Identifier: Apache-2.0
"""How much faster is a network that was planned in measured int8 time, and what does it lose?

Of each benchmark network four files: the original in float and in int8, half of its MACs in int8, and planned
by ``slimrank.meet_latency`` with a table of int8 files, for the speeds in ``SPEEDS``. No labels are used and
nothing is trained. Accuracy is that of the exported file on the 10,011 test pictures. Times are of one batch
on one thread, each file in turns with the float original, 4 seconds after 3 warm-up rounds, in each turn for
10 ms untimed and then for 10 ms timed, in seconds of the processor. One row per file in
``benchmarks/results/latency-int8-cpu-torch<version>.csv``.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

import slimrank as sr
from benchmarks.bench_quantize import RATIO, RUNTIMES, Subject, in_torch, subject
from benchmarks.tables import Row, Value, keep_rows
from benchmarks.tasks.tasks import TASKS, paired_interval
from slimrank.deploy import FORMATS, compare_in_turns
from slimrank.latency import BACKENDS, quantize_of

KEY = ("network", "backend", "batch", "file")
SECONDS = 4.0
# How many times faster than the original in float, and than the original in int8, a plan shall be.
SPEEDS: Mapping[str, tuple[float, float]] = {
    "vgg": (3.5, 1.6),
    "resnet": (2.0, 1.2),
    "mobilenet": (2.0, 1.2),
    "vit": (2.0, 1.2),
}
# A plan is asked for a little less than that, since machines repeat no closer.
MARGIN = 0.98


def asked_of(name: str, whole: float) -> float:
    """The latency that a plan is asked for, so that both speeds hold.

    Args:
        name: of the network.
        whole: time of the original in int8 over that in float, measured.
    """
    beside_float, beside_int8 = SPEEDS[name]
    return MARGIN * min(1 / beside_float, whole / beside_int8)


def rows_of(network: Subject, backend: str, batch: int, folder: Path) -> Iterator[Row]:
    """Every row of one network.

    Args:
        network: trained, with its data.
        backend: the runtime.
        batch: samples in the batch that is timed.
        folder: for files.

    Yields:
        The rows.
    """
    name, format = network.task.name, BACKENDS[backend].format
    study = sr.study(network.model, network.batches, skip=network.task.skip, progress=False)
    table = sr.measure_latency(
        study, backend=backend, batch=batch, precision="int8", path=folder / "table.json", progress=False
    )
    given = {key: value[:batch] for key, value in network.inputs.items()}
    right = network.right(in_torch(network.model.eval()))
    originals = [("original float", "float32"), ("original int8", "int8")]
    runs: list[Callable[[], Tensor]] = []

    def row(file: str, precision: str, result: sr.Result | None) -> Row:
        path = folder / f"{file.replace(' ', '-')}{FORMATS[format].suffix}"
        made = sr.export(
            network.model if result is None else result.model, path, network.batches, format=format,
            quantize=quantize_of(precision), max_quant_drop=None if precision == "float32" else float("inf"),
            batch=batch,
        )  # fmt: skip
        run = RUNTIMES[format](path)
        runs.append(lambda: run(given))
        compared = compare_in_turns(runs[0], runs[-1], threads=1, seconds=SECONDS)
        return {
            "network": name,
            "backend": backend,
            "batch": batch,
            "file": file,
            **_accuracy(right, network.right(run)),
            "ms": round(compared.after.milliseconds, 4),
            "ratio": round(compared.ratio, 4),
            "spread": round(compared.spread, 4),
            "bytes": made.bytes,
            "macs_counted": 1.0 if result is None else round(result.keep_ratio("macs"), 4),
            "divergence": None if result is None else result.divergence,
            "int8_divergence": None if made.int8 is None else made.int8.divergence,
            **_planned(result),
        }

    rows = [row(file, precision, None) for file, precision in originals]
    yield from rows
    halved = study.apply(study.plan(macs=network.task.budget(study, RATIO)))
    yield row("MAC-planned int8", "int8", halved)
    asked = asked_of(name, float(str(rows[-1]["ratio"])))
    yield row("latency-planned int8", "int8", sr.meet_latency(study, asked, latencies=table))


def _accuracy(original: Tensor, found: Tensor) -> dict[str, Value]:
    """Percent right, and points lost beside the original in torch."""
    lost, interval = paired_interval(original, found)
    return {
        "accuracy": round(100 * float(found.double().mean()), 2),
        "points_lost": round(lost, 2),
        "interval_95": round(interval, 2),
    }


def _planned(result: sr.Result | None) -> dict[str, Value]:
    """What was asked, predicted and measured of a result that was planned in time; nothing of others."""
    if result is None or result.latency is None:
        return {"asked": None, "predicted": None, "met": None, "rounds": None}
    latency = result.latency
    return {
        "asked": round(latency.asked, 4),
        "predicted": round(latency.predicted, 4),
        "met": round(latency.measured, 4),
        "rounds": latency.rounds,
    }


def main() -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=TASKS, default=list(SPEEDS))
    parser.add_argument("--backends", nargs="*", choices=("onnxruntime", "openvino"), default=["onnxruntime"])
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        for backend in args.backends:
            with tempfile.TemporaryDirectory() as folder:
                keep_rows("latency-int8", rows_of(subject(name), backend, args.batch, Path(folder)), KEY)


if __name__ == "__main__":
    main()
