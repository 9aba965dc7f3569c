# SPDX-License-Identifier: Apache-2.0
"""A table of another machine: variants are exported here, measured there by a script, read back here."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from slimrank._errors import FileError, LatencyError, NotEmptyError
from slimrank._progress import Phases
from slimrank.deploy import (
    ORIGINAL,
    SCRIPT_FILE,
    SCRIPT_PATH,
    STEP,
    LooseFile,
    NodeTime,
    machine_name,
    nodes_in_graph,
    write_loose,
)
from slimrank.forward import Batch
from slimrank.latencies import (
    ChoiceFields,
    Conditions,
    Latencies,
    LatencyRecord,
    Parts,
    VariantTime,
    differing_topics,
    tie_of,
)
from slimrank.latency._backends import BACKENDS
from slimrank.latency._machine import package_versions
from slimrank.latency._measure import SECONDS, SEED, drawn_variants, finished_table
from slimrank.latency._parts import node_counts, parts_of, without_overhead
from slimrank.latency._prepared import PreparedFile, read_measured, read_prepared, write_prepared
from slimrank.latency._step import step_network, steps_of_nodes
from slimrank.latency._variants import build_variant, shared_step, untouched
from slimrank.plan import Step, Structure
from slimrank.records import Method

# The runtime that the script has.
_BACKEND = "onnxruntime"


def prepare_variants(
    model: nn.Module,
    batches: Callable[[], Iterable[Batch]],
    structure: Structure,
    *,
    methods: Sequence[Method],
    has_bias: bool,
    threads: int,
    batch: int,
    folder: Path,
    phases: Phases,
) -> None:
    """Writes a folder that a table is measured from elsewhere, whole or not at all.

    Args:
        model: the network; it is not changed.
        batches: gives real inputs, checked.
        structure: of the network.
        methods: that plans may use.
        has_bias: whether pairs have a bias even where the layer has none.
        threads: of the runtime there.
        batch: samples in the batch.
        folder: a new one; its parent must be there.
        phases: progress.

    Raises:
        NotEmptyError: the folder holds something.
        FileError: it cannot be written.
        LatencyError: the network takes another batch only.
        SlimrankError: for the export.
    """
    _check_new(folder)
    conditions = Conditions(
        backend=_BACKEND,
        threads=threads,
        batch=batch,
        precision="float32",
        machine=machine_name(),
        versions=package_versions(BACKENDS[_BACKEND].packages),
        fingerprint=tie_of(structure),
        methods=tuple(methods),
    )
    variants = drawn_variants(structure, methods, shared_step(structure, methods))
    # Of variants whose names sort as their numbers do.
    width = len(str(len(variants)))
    # No folder of tempfile, which nobody else may read.
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
    except OSError as error:
        raise FileError(
            f"{folder} cannot be written ({error}); give a new folder in an existing one"
        ) from error
    try:
        with torch.no_grad(), phases.phase("prepare", 2 + len(variants)) as advance:
            network, example = step_network(structure)
            step = write_loose(network, [example], draft / "draft", batch=example.n_samples)
            files = {STEP: _placed(step, draft, STEP, "step.npz", None)}
            advance(1, STEP)
            original = write_loose(model, batches(), draft / "draft", batch=batch)
            if original.batch != batch:
                raise LatencyError(
                    f"batch={batch}: a file of this network takes batches of {original.batch} only; give "
                    f"batch={original.batch}"
                )
            files[ORIGINAL] = _placed(original, draft, ORIGINAL, "input.npz", None)
            advance(1, ORIGINAL)
            for number, variant in enumerate(variants):
                network = build_variant(model, variant, has_bias=has_bias, seed=SEED + number)
                name = f"variant{number:0{width}}"
                file = write_loose(network, batches(), draft / "draft", batch=batch)
                choice = ChoiceFields(
                    settings=variant.settings,
                    kept={group: len(units) for group, units in variant.groups.items()},
                    dropped=variant.dropped,
                )
                files[name] = _placed(file, draft, name, "input.npz", choice)
                advance(1, name)
        shutil.copyfile(SCRIPT_PATH, draft / SCRIPT_FILE)
        write_prepared(draft, conditions, files, seconds=SECONDS)
        if folder.is_dir():
            folder.rmdir()
        draft.rename(folder)
    except OSError as error:
        raise FileError(
            f"{folder} cannot be written ({error}); give a folder with room and rights"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def collect_variants(
    structure: Structure, methods: Sequence[Method], folder: Path, path: str | os.PathLike[str] | None
) -> Latencies:
    """The table of what was measured elsewhere.

    Args:
        structure: of the network.
        methods: that plans may use.
        folder: that ``prepare_variants`` wrote, with what was measured.
        path: of the table's file; None for none.

    Returns:
        The table, of the machine where it was measured.

    Raises:
        LatencyError: the folder is of another network, or of other methods; nothing or not all of it was
            measured; a file is damaged.
        FileError: a file is missing, or cannot be read or written.
    """
    prepared = read_prepared(folder)
    differing = differing_topics(prepared.conditions.fingerprint, tie_of(structure))
    if prepared.conditions.methods != tuple(methods):
        differing.append(
            f"methods ({', '.join(prepared.conditions.methods)} there, {', '.join(methods)} here)"
        )
    if differing:
        raise LatencyError(
            f"{folder}: it was prepared for a study with other {' and '.join(differing)}; give the folder of "
            "this study, or prepare one with slimrank.prepare_latency(study, folder)"
        )
    measured = read_measured(folder, prepared)
    nodes = {
        name: nodes_in_graph(measured.files[name].nodes, file.graph) for name, file in prepared.files.items()
    }
    variants = []
    for name, file in prepared.files.items():
        if file.variant is None:
            continue
        known = VariantTime(
            **file.variant,
            parts=parts_of((), untouched(structure)),
            **measured.files[name].compared,
        )
        variant = known.step(structure)
        took = 1e6 * known.before_ms * known.ratio
        variants.append(replace(known, parts=_parts(nodes[name], variant, took)))
    before = 1e6 * median(variant.before_ms for variant in variants)
    conditions = replace(
        prepared.conditions,
        machine=measured.machine,
        versions={**prepared.conditions.versions, _BACKEND: measured.onnxruntime},
    )
    record = LatencyRecord(
        conditions=conditions,
        steps=steps_of_nodes(nodes[STEP]),
        original=_parts(nodes[ORIGINAL], untouched(structure), before),
        variants=tuple(variants),
    )
    return finished_table(record, structure, methods, path)


def _parts(nodes: Sequence[NodeTime], variant: Step, whole: float) -> Parts:
    """Times of the parts of a variant that takes so long, ns."""
    return without_overhead(parts_of(nodes, variant), node_counts(nodes, variant), whole)


def _check_new(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise NotEmptyError(f"{folder} is not empty; give a new folder")


def _placed(
    file: LooseFile, folder: Path, name: str, inputs: str, variant: ChoiceFields | None
) -> PreparedFile:
    """A file that was written to a draft, moved to its place; its batch is written once."""
    path = folder / f"{name}.onnx"
    file.path.replace(path)
    shutil.rmtree(folder / "draft")
    if not (folder / inputs).exists():
        # By number: an input may be called as an argument of savez is.
        np.savez(folder / inputs, *file.inputs.values())
    return PreparedFile(
        file=path.name, input=inputs, input_names=tuple(file.inputs), graph=file.graph, variant=variant
    )
