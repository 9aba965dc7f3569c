# SPDX-License-Identifier: Apache-2.0
"""The architecture of a saved model, on request: recorded as data, checked, and loaded without its class."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError, ExportError, FileError
from slimrank._names import listed
from slimrank.deploy._check import Reading, check_file
from slimrank.deploy._named_model import named_model, output_tensors
from slimrank.deploy._prepare import prepare
from slimrank.deploy._program import Program, capture_program
from slimrank.deploy._quiet import EXPORT_TURN, told
from slimrank.deploy._record_program import Recorded, record_program
from slimrank.deploy._recorded_model import RecordedModel
from slimrank.deploy._runtime import Bound
from slimrank.deploy._samples import Samples, count_told, read_samples
from slimrank.deploy._saved_model import (
    OWN_FILES,
    check_own_files,
    is_saved_model,
    read_manifest,
    read_state,
)
from slimrank.files import Json, Store, write_bytes
from slimrank.forward import Batch, run
from slimrank.records import Note
from slimrank.surgery import quiet_copy
from slimrank.tensors import digest_file, read_tensors, write_tensors

PROGRAM_FILE, CONSTANTS_FILE = "architecture.json", "architecture.safetensors"
# Samples of the example that any number is captured with: torch takes a size of 1 for fixed.
_EXAMPLE = 2


def record_architecture(model: nn.Module, batches: Iterable[Batch]) -> tuple[Recorded, tuple[Note, ...]]:
    """Records what a model computes, with any number of samples where it allows that; nothing is written.

    Args:
        model: to record; it is not changed.
        batches: real inputs, checked.

    Returns:
        The record, which answered as the model does on these inputs, and what the user should know.

    Raises:
        ExportError: the model cannot be recorded, or the record answers otherwise.
        BatchesError: the model refuses the batches, or there are none.
    """
    with EXPORT_TURN:
        samples = read_samples(batches)
        plain = quiet_copy(model).cpu()
        first = samples.take(0, samples.n_first)
        prepared = prepare(plain, first, keeps_modules=True)
        named = named_model(prepared.model, first, prepared.outputs)
        notes = tuple(Note(where="architecture", text=text) for text in prepared.notes)
        try:
            if samples.batch.is_whole:
                raise BatchesError("the batches cannot be cut into samples")
            program = capture_program(named, samples.take(0, _EXAMPLE), is_dynamic=True)
            return _recorded(program, model, samples), notes
        except (ExportError, BatchesError) as error:
            why = str(error).rsplit("; ", 1)[0]
        try:
            recorded = _recorded(capture_program(named, first, is_dynamic=False), model, samples)
        except ExportError as error:
            raise ExportError(
                f"{error}; or leave architecture=True out, and load by slimrank.load(directory, "
                "model=build())"
            ) from error
        text = f"recorded for inputs of the shapes of the first batch alone: {why}"
        return recorded, (*notes, Note(where="architecture", text=text))


def has_architecture(directory: Path) -> bool:
    """Whether a model was saved there with its architecture."""
    return is_saved_model(directory) and (directory / PROGRAM_FILE).is_file()


def write_architecture(folder: Path, recorded: Recorded) -> dict[str, Json]:
    """Writes a record beside the weights of its model.

    Args:
        folder: the draft of a saved model.
        recorded: of this model.

    Returns:
        Facts for the manifest: the files and their digests.
    """
    store = Store(folder)
    write_bytes(folder / PROGRAM_FILE, _text_of(recorded).encode())
    write_tensors(store.path_of(CONSTANTS_FILE), recorded.tensors)
    return {OWN_FILES: {name: digest_file(folder / name) for name in (PROGRAM_FILE, CONSTANTS_FILE)}}


def load_architecture(path: str | os.PathLike[str]) -> nn.Module:
    """A compressed model from its directory alone.

    Args:
        path: a directory that was saved with its architecture.

    Returns:
        A module that computes what the model did, with its weights, in eval mode, on the CPU.

    Raises:
        FileError: no such directory, no record in it, a file that is missing or altered, or a record of a
            torch that has other operations.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileError(f"{root} is no directory; give one that result.save() wrote")
    manifest = read_manifest(root)
    digests = manifest.get(OWN_FILES)
    if not isinstance(digests, dict) or PROGRAM_FILE not in digests:
        cure = "pass model= with the original, freshly built, or save with architecture=True"
        if "pretrained" in manifest:
            cure = "read what result.save_pretrained() wrote by slimrank.from_pretrained(directory)"
        raise FileError(f"{root} holds weights but no architecture; {cure}")
    check_own_files(root, digests)
    store = Store(root)
    state, unsaved = read_state(root, manifest), read_tensors(store.root / CONSTANTS_FILE)
    twice = sorted(state.keys() & unsaved.keys())
    if twice:
        raise FileError(
            f"{root / CONSTANTS_FILE} holds weights of the model ({listed(twice)}); save it again"
        )
    return RecordedModel(
        store.read_json(PROGRAM_FILE), {**state, **unsaved}, list(unsaved), str(root / PROGRAM_FILE)
    )


def _text_of(recorded: Recorded) -> str:
    # Not sorted: dicts among the outputs keep their order.
    return f"{json.dumps(recorded.facts, indent=1)}\n"


def _recorded(program: Program, model: nn.Module, samples: Samples) -> Recorded:
    """The record of a program, after it answered as the model does."""
    named = program.model
    with torch.no_grad():
        result = run(named.model, program.batch)
    recorded = record_program(program, model, result)
    # As they will come out of the file.
    facts = json.loads(_text_of(recorded))
    state = {**named.model.state_dict(), **recorded.tensors}
    loaded = RecordedModel(facts, state, list(recorded.tensors), f"{named.title}, recorded")

    def bind(batch: Batch) -> Bound:
        def answer() -> Sequence[Tensor]:
            try:
                with torch.no_grad():
                    return [tensor for _, tensor in output_tensors(run(loaded, batch))]
            except BatchesError as error:
                raise ExportError(
                    f"the recorded architecture of {named.title} fails on {count_told(batch.n_samples)}: "
                    f"{told(error)}"
                ) from error

        return answer

    checked = check_file(program, bind, named.model, samples, Reading())
    # Written so that nan fails.
    if not checked.max_error <= checked.bound:
        raise ExportError(
            f"the recorded architecture answers otherwise than {named.title}: {checked.worst}; a model that "
            "draws random numbers cannot be recorded"
        )
    return recorded
