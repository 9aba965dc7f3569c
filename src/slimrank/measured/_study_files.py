# SPDX-License-Identifier: Apache-2.0
"""The files of a study's directory: a plain value in, a plain value out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from slimrank._errors import FileError, StudyError
from slimrank.files import Json, Store, check_format, make_directory, spelled_number
from slimrank.measured._curve_files import (
    GRADIENT_FILE,
    read_blocks,
    read_curves,
    read_group_curves,
    write_blocks,
    write_curves,
    write_groups,
)
from slimrank.measured._options import Options, options_from_json, options_to_json
from slimrank.plan import Plan, Step, Structure
from slimrank.records import ALL_METHODS, BlockDamage, Cost, Curve, GroupCurve, Method, Note

# Raised when a file, a number in it or an option changes its meaning. Before format 2 not every file had one.
FORMAT = 3
# What was measured; structure and cost, as a plan that changes nothing; the fingerprint, first of all;
# the plan that made the model.
_STUDY, _STRUCTURE, _RUN, _PREVIOUS = "study.json", "untouched_plan.json", "run.json", "previous_plan.json"
# Globs of the files that hold measurements: those of another study must not be taken for this one's.
MEASURED = ("curves-*", "group-*", "blocks*.safetensors", GRADIENT_FILE)
# In run.json, beside the fingerprint.
_ASKED, _BATCHES = "asked", "batches"
# How ``outputs`` and ``loss`` stand in study.json where it was a function, which no file can keep.
FUNCTION = "function"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyRecord:
    """What a study's directory holds, but for the inputs and the gradients: all that plans are chosen from.

    Attributes:
        structure: every layer, in execution order, and the channel map.
        before: counted cost of the model, for one sample.
        has_bias: whether pairs carry a bias even where the layer has none.
        curves: cost and damage by rank, per layer and form.
        group_curves: damage by the channels that stay, per channel group.
        block_damages: of replacing blocks by the identity.
        methods: the methods that were measured.
        unit: of damage.
        notes: what the user should know.
        seconds: wall time of each phase.
        fingerprint: ties the study to structure, weights, inputs and options.
        previous: the plan that made the model, where it had been compressed before.
        options: what was asked; None where the study was written without its model.
        outputs: which outputs matter, as study.json keeps it.
        has_loss: whether it was made with a loss of the caller's, which no file can keep.
        no_inputs: why the directory holds no inputs; None where it holds them.
    """

    structure: Structure
    before: Cost
    has_bias: bool
    curves: tuple[Curve, ...]
    group_curves: tuple[GroupCurve, ...]
    block_damages: tuple[BlockDamage, ...]
    methods: tuple[Method, ...]
    unit: str
    notes: tuple[Note, ...]
    seconds: Mapping[str, float]
    fingerprint: Mapping[str, str]
    previous: Plan | None
    options: Options | None = None
    outputs: Json = None
    has_loss: bool = False
    no_inputs: str | None = None

    @property
    def untouched(self) -> Plan:
        """The plan that leaves the model as it is: plan files know how to keep structure and costs."""
        return Plan(
            steps=(Step(structure=self.structure, layers={}),), before=self.before, has_bias=self.has_bias
        )


def write_measurements(store: Store, record: StudyRecord, digests: Sequence[str] | None) -> None:
    """Writes all of a study but what makes it whole, which comes last: ``write_facts``.

    Args:
        store: the directory; files of an earlier study in it are replaced.
        record: what to write.
        digests: of its batches; None where they are not known.

    Raises:
        FileError: it cannot be written.
    """
    stored = _fingerprint_in(store)
    store.remove(_STUDY)
    if stored is not None and dict(stored) != dict(record.fingerprint):
        for name in (_PREVIOUS, *(path.name for glob in MEASURED for path in store.root.glob(glob))):
            store.remove(name)
    write_fingerprint(store, record.fingerprint, record.options, digests)
    record.untouched.save(make_directory(store.root) / _STRUCTURE)
    if record.previous is not None:
        record.previous.save(store.root / _PREVIOUS)
    write_curves(store, tuple(record.structure.layers.values()), record.curves)
    write_groups(store, record.structure.channels, record.group_curves)
    # Blocks are measured with data only.
    if record.structure.channels.blocks and record.has_bias:
        write_blocks(store, record.block_damages)


def write_facts(store: Store, record: StudyRecord) -> None:
    """Writes the file of a study that makes its directory whole.

    Args:
        store: the directory.
        record: of which all else is written.

    Raises:
        FileError: it cannot be written.
    """
    facts: dict[str, Json] = {
        "format": FORMAT,
        "fingerprint": dict(record.fingerprint),
        "methods": list(record.methods),
        "unit": record.unit,
        # A third entry only where there is something to say: files are then as older versions wrote them.
        "notes": [[note.where, note.text, *([True] if note.is_warning else [])] for note in record.notes],
        "seconds": [[phase, taken] for phase, taken in record.seconds.items()],
        "inputs": record.no_inputs is None,
        "inputs_reason": record.no_inputs,
        "options": None if record.options is None else options_to_json(record.options),
        "outputs": record.outputs,
    }
    if record.has_loss:
        facts["loss"] = FUNCTION
    store.write_json(_STUDY, facts)


def read_study(store: Store) -> StudyRecord:
    """Reads what ``write_measurements`` and ``write_facts`` left.

    Args:
        store: the directory.

    Returns:
        The record.

    Raises:
        FileError: there is no study; or a file is missing, truncated, altered or of another format.
        StudyError: the study was not finished.
    """
    advice = "give the run_dir= (--out) of a study"
    if not store.root.is_dir():
        what = "is a file, not a directory" if store.root.exists() else "is not there"
        raise FileError(f"study {store.root}: it {what}; {advice}")
    if not store.has(_STUDY):
        if store.has(_RUN):
            raise StudyError(
                f"the study in {store.root} was not finished; run it again with this run_dir to go on "
                f"(slimrank serve {store.root} shows how far it came)"
            )
        raise FileError(f"study {store.root}: there is no {_STUDY} in it, so no study; {advice}")
    facts = store.read_json(_STUDY)
    _check_format(store)
    untouched = Plan.load(store.root / _STRUCTURE)
    structure = untouched.steps[0].structure
    options = facts.get("options")
    has_inputs = facts.get("inputs") is True
    return StudyRecord(
        structure=structure,
        before=untouched.before,
        has_bias=untouched.has_bias,
        curves=read_curves(store, tuple(structure.layers.values())),
        group_curves=read_group_curves(store, structure.channels),
        # Blocks are measured with data only.
        block_damages=read_blocks(store, structure.channels) if untouched.has_bias else (),
        methods=tuple(method for method in ALL_METHODS if method in _list_of(facts, "methods")),
        unit=str(facts.get("unit")),
        notes=tuple(
            Note(where=str(entry[0]), text=str(entry[1]), is_warning=entry[2:] == [True])
            for entry in _list_of(facts, "notes")
            if isinstance(entry, list)
        ),
        seconds={
            str(entry[0]): float(str(entry[1]))
            for entry in _list_of(facts, "seconds")
            if isinstance(entry, list)
        },
        fingerprint={str(key): str(value) for key, value in _object_of(facts, "fingerprint").items()},
        previous=Plan.load(store.root / _PREVIOUS) if store.has(_PREVIOUS) else None,
        options=None if options is None else options_from_json(_object_of(facts, "options")),
        outputs=facts.get("outputs"),
        has_loss=facts.get("loss") is not None,
        no_inputs=None if has_inputs else str(facts.get("inputs_reason")),
    )


def has_previous_plan(directory: Path) -> bool:
    """Whether a directory holds the study of a model that had been compressed before."""
    return (directory / _PREVIOUS).is_file()


def check_fingerprint(fingerprint: Mapping[str, str], record: StudyRecord, store: Store) -> None:
    """Refuses a model or data that are not those of a study that was read.

    Raises:
        StudyError: fingerprints differ; the message says of what.
    """
    differing = [key for key, value in fingerprint.items() if record.fingerprint.get(key) != value]
    if differing:
        raise StudyError(
            f"the study in {store.root} was made of other {_topics_text(differing)}; "
            "pass the same model and data, or study again"
        )


def refuse_other_study(
    store: Store, differing: Sequence[str], options: Options, batches: str | None = None
) -> NoReturn:
    """Tells in what a study differs from that of a run directory.

    Args:
        store: the directory.
        differing: topics of the fingerprint.
        options: of the study.
        batches: in what its batches differ; None where that is not known.

    Raises:
        StudyError: always.
    """
    topics = _topics_text(differing, _changed_options(store, options), batches or "")
    raise StudyError(f"{store.root} holds a study of other {topics}; give another run_dir or delete it")


def options_in(store: Store) -> Options | None:
    """What was asked of the study that a run directory holds; None where that is not known."""
    known = store.read_json(_RUN).get(_ASKED) if store.has(_RUN) else None
    if not isinstance(known, dict):
        # Directories of older versions have them only where the study was finished.
        known = store.read_json(_STUDY).get("options") if store.has(_STUDY) else None
    return options_from_json(known) if isinstance(known, dict) else None


def digests_in(store: Store) -> tuple[str, ...] | None:
    """Digests of the batches of the study that a run directory holds; None where they are not known."""
    known = store.read_json(_RUN).get(_BATCHES) if store.has(_RUN) else None
    return tuple(str(digest) for digest in known) if isinstance(known, list) else None


def open_anew(store: Store, files: Iterable[str]) -> None:
    """Makes a finished study one that is to be finished, without some of its measurements.

    Args:
        store: of the run directory.
        files: globs of the measurements that go.
    """
    # Removed first, so that a directory with this file is whole.
    store.remove(_STUDY)
    for name in sorted({path.name for glob in files for path in store.root.glob(glob)}):
        store.remove(name)


def _changed_options(store: Store, options: Options) -> str:
    """The options in which a study differs from that of a directory, for people; "" where not known."""
    asked = options_in(store)
    if asked is None:
        return ""
    # Defaults, too, which the JSON leaves out.
    there, here = _shown(asked), _shown(options)
    return ", ".join(
        f"{name}={there[name]!r} there and {here[name]!r} here" for name in there if there[name] != here[name]
    )


def _shown(options: Options) -> dict[str, Json]:
    """Options by name, as people write them."""
    return {field.name: getattr(options, field.name) for field in fields(options)} | options_to_json(options)


def _topics_text(topics: Sequence[str], options: str = "", inputs: str = "") -> str:
    """Topics of a fingerprint, for people.

    Args:
        topics: that differ.
        options: which ones of the options; "" where that is not known.
        inputs: which ones of the batches; "" where that is not known.
    """
    explained = {"outputs": "outputs (which ones, or their likelihood, weights or loss)"}
    if options:
        explained["options"] = f"options ({options})"
    if inputs:
        explained["inputs"] = f"inputs ({inputs})"
    return " and ".join(explained.get(topic, topic) for topic in topics)


def _check_format(store: Store) -> None:
    for name in (_STUDY, _RUN):
        if store.has(name):
            check_format(
                # Files of the first format bear none.
                spelled_number(store.read_json(name).get("format", 1)),
                FORMAT,
                where=str(store.root / name),
                advice="study again in another directory, or delete this one",
            )


def write_fingerprint(
    store: Store, fingerprint: Mapping[str, str], options: Options | None, digests: Sequence[str] | None
) -> None:
    """Ties a run directory to a study.

    Args:
        store: the directory.
        fingerprint: of the study.
        options: of the study; None where they are not known.
        digests: of its batches; None where they are not known.
    """
    # Options and batches beside their digest, so that a message can say which ones differ.
    asked: dict[str, Json] = {} if options is None else {_ASKED: options_to_json(options)}
    batches: dict[str, Json] = {} if digests is None else {_BATCHES: list(digests)}
    store.write_json(_RUN, {"format": str(FORMAT), **fingerprint, **asked, **batches})


def fingerprint_in(store: Store) -> Mapping[str, Json] | None:
    """The fingerprint of the study that a directory holds; None where it holds none.

    Args:
        store: the directory.

    Raises:
        FileError: it is of another format.
    """
    _check_format(store)
    return _fingerprint_in(store)


def _fingerprint_in(store: Store) -> Mapping[str, Json] | None:
    if store.has(_RUN):
        return {
            key: value
            for key, value in store.read_json(_RUN).items()
            if key not in {"format", _ASKED, _BATCHES}
        }
    return _object_of(store.read_json(_STUDY), "fingerprint") if store.has(_STUDY) else None


def _object_of(facts: Mapping[str, Json], key: str) -> dict[str, Json]:
    value = facts.get(key)
    if not isinstance(value, dict):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not an object; study again")
    return value


def _list_of(facts: Mapping[str, Json], key: str) -> list[Json]:
    value = facts.get(key)
    if not isinstance(value, list):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not a list; study again")
    return value
