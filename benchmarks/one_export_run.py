# SPDX-License-Identifier: Apache-2.0
"""One network of the export table, compressed without data and exported, in a process of its own.

python benchmarks/one_export_run.py transformers/bert --formats onnx openvino

Prints a cell as JSON when it begins and when it ends, so that whoever finds this process dead knows where.
"""

import argparse
import json
import math
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import slimrank as sr
from benchmarks import export_nets, zoo, zoo_coverage
from benchmarks.one_zoo_run import arguments
from benchmarks.tables import FACTORS
from slimrank.deploy._formats import FORMATS
from slimrank.records import Method
from slimrank.select import reachable_floor

# Keep ratios of the MACs after channel pruning, and after layers were split as well.
NARROWED, ASKED = 0.7, 0.6
# Params of layers that are not split: their decompositions take minutes, and export like those of others.
_LARGE = 500_000
N_SAMPLES = 4
_MEMORY_LIMIT = 12 * 2**30
Value = str | int | float | None
Cell = dict[str, Value]


def say(cell: Cell, **values: Value) -> None:
    """Prints a cell of the table."""
    print(json.dumps({**cell, **values}), flush=True)


def compress(net: zoo.Net, batches: list[object]) -> tuple[sr.Result, Cell]:
    """The network at 0.6 of its MACs, or as low as it goes, by its weights alone.

    In two steps, so that there is something of both where both can be: channels go, then layers are split.

    Args:
        net: the network.
        batches: that tell shapes.

    Returns:
        The result, and columns of the table.
    """
    model = zoo_coverage.build(net)
    large = [
        name
        for name, module in model.named_modules()
        if sum(parameter.numel() for parameter in module.parameters(recurse=False)) > _LARGE
    ]
    narrowing = study_of(model, batches, ("channel_pruning",), ())
    results = [] if narrowing is None else [result_of(narrowing, NARROWED)]
    splitting = study_of(results[0] if results else model, batches, FACTORS, large)
    if splitting is not None:
        done = results[0].keep_ratio("macs") if results else 1
        results.append(result_of(splitting, min(ASKED / done, 1)))
    elif narrowing is not None:
        results = [result_of(narrowing, ASKED)]
    return results[-1], {
        "macs": round(results[-1].keep_ratio("macs"), 4),
        "narrowed": sum(len(result.plan.groups) for result in results),
        "split": sum(len(result.plan.settings) for result in results),
    }


def study_of(
    model: nn.Module | sr.Result, batches: list[object], methods: Sequence[Method], skip: Sequence[str]
) -> sr.Study | None:
    """A study without data; None where these methods fit no layer."""
    try:
        return sr.study(model, batches, methods=methods, skip=skip, data_free=True, progress=False)
    except sr.ModelError as error:
        if "has no compressible layer" not in str(error):
            raise
    return None


def result_of(study: sr.Study, ratio: float) -> sr.Result:
    """The model at this keep ratio of the MACs; where less than that cannot go, at the lowest there is."""
    lowest = math.ceil(1e4 * reachable_floor(study, "macs") + 1) / 1e4
    return study.apply(study.plan(macs=min(max(ratio, lowest), 1)))


def exported_cell(result: sr.Result, batches: list[object], format: str, folder: Path) -> Cell:
    """What came of one export.

    Args:
        result: the compressed network.
        batches: random inputs.
        format: of the export.
        folder: to write to.

    Returns:
        Columns of the table: the measures of the file, or the error.
    """
    start = time.perf_counter()
    try:
        exported = sr.export(result.model, folder / f"model{FORMATS[format].suffix}", batches, format=format)
    except Exception as error:
        outcome = "refused" if isinstance(error, sr.ExportError) else "error"
        return {"outcome": outcome, **facts_of(error), "seconds": round(time.perf_counter() - start, 1)}
    # Another note on batches tells up to how many samples a file of ExecuTorch takes.
    fixed = [
        note.text
        for note in exported.notes
        if note.where == "batch" and note.text.startswith("the file takes batches of")
    ]
    # Times are not what this is about.
    notes = [note.text for note in exported.notes if note.where not in ("batch", format)]
    return {
        "outcome": "exported",
        "max_error": float(f"{exported.max_error:.2g}"),
        "dynamic": "no" if fixed else "yes",
        "bytes": exported.bytes,
        "seconds": round(time.perf_counter() - start, 1),
        "why_fixed": "; ".join(fixed)[:300],
        "notes": "; ".join(notes)[:600],
    }


def facts_of(error: Exception) -> Cell:
    """Kind and beginning of an error, and the operator and module that it names."""
    text = " ".join(str(error).split())
    operator = re.search(r"has no translation of (\S+)", text)
    module = re.search(r"(?:in |\()module ([^\s,;:)]+)", text)
    return {
        "error_type": type(error).__name__,
        "operator": operator and operator[1],
        "module": module and module[1],
        "error": text[:400],
    }


def run(net: zoo.Net, formats: list[str], limits: Mapping[str, int]) -> None:
    """Prints the cell of each format; a step that takes longer than its limit ends the process by SIGALRM."""
    cell: Cell = {"network": net.name, "source": net.source}
    say(cell, step="compress")
    signal.alarm(limits["compress"])
    start = time.perf_counter()
    args, kwargs = arguments(net, N_SAMPLES)
    batches = [kwargs or args]
    try:
        result, columns = compress(net, batches)
    except Exception as error:
        for format in formats:
            say(cell, format=format, step="done", outcome="not compressed", **facts_of(error))
        return
    cell |= {**columns, "compress_s": round(time.perf_counter() - start, 1)}
    for format in formats:
        say(cell, format=format, step="export")
        signal.alarm(limits["export"])
        with tempfile.TemporaryDirectory() as folder:
            values = exported_cell(result, batches, format, Path(folder))
        signal.alarm(0)
        say(cell, format=format, step="done", **values)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=export_nets.NETS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--limit", type=int, default=240, help="seconds for one export")
    parser.add_argument("--compress-limit", type=int, default=900, help="seconds for the compression")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # One network must not take the machine from the others.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    warnings.filterwarnings("ignore")
    zoo.stand_in_for_torchvision()
    run(export_nets.NETS[args.network], args.formats, {"compress": args.compress_limit, "export": args.limit})


if __name__ == "__main__":
    main()
