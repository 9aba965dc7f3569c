# SPDX-License-Identifier: Apache-2.0
"""The files of a study's directory."""

from collections.abc import Iterable, Mapping

import torch

from slimrank._errors import FileError, StudyError
from slimrank.files import Json
from slimrank.forward import Batch, OutputChoice, map_tensors
from slimrank.store import Store
from slimrank.survey._session import Inputs, Session

# Raised when a file, a number in it or an option changes its meaning. Before format 2 not every file had one.
FORMAT = 3
STUDY_FILE, UNTOUCHED_FILE, RUN_FILE = "study.json", "untouched_plan.json", "run.json"
PREVIOUS_FILE = "previous_plan.json"
CURVE_FILES = ("curves-*", "group-*", "blocks*.safetensors")


def object_of(facts: Mapping[str, Json], key: str) -> dict[str, Json]:
    """The JSON object under a key of study.json.

    Raises:
        FileError: something else stands there.
    """
    value = facts.get(key)
    if not isinstance(value, dict):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not an object; study again")
    return value


def list_of(facts: Mapping[str, Json], key: str) -> list[Json]:
    """The JSON list under a key of study.json.

    Raises:
        FileError: something else stands there.
    """
    value = facts.get(key)
    if not isinstance(value, list):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not a list; study again")
    return value


def check_format(store: Store) -> None:
    """Refuses a study of another format.

    Raises:
        FileError: it is.
    """
    for name in (STUDY_FILE, RUN_FILE):
        number = str(store.read_json(name).get("format", 1)) if store.has(name) else str(FORMAT)
        if number != str(FORMAT):
            raise FileError(
                f"{store.root / name} has format {number}, this version reads {FORMAT}; "
                "study again in another directory, or delete this one"
            )


def write_fingerprint(store: Store, fingerprint: Mapping[str, str]) -> None:
    store.write_json(RUN_FILE, {"format": str(FORMAT), **fingerprint})


def fingerprint_in(store: Store) -> Mapping[str, Json] | None:
    """Of the study that a directory holds; None where it holds none."""
    if store.has(RUN_FILE):
        return {key: value for key, value in store.read_json(RUN_FILE).items() if key != "format"}
    return object_of(store.read_json(STUDY_FILE), "fingerprint") if store.has(STUDY_FILE) else None


def claim(store: Store, fingerprint: Mapping[str, str]) -> None:
    """Ties a run directory to a study, or finds it tied to this one."""
    check_format(store)
    found = fingerprint_in(store)
    if found is None:
        write_fingerprint(store, fingerprint)
        return
    differing = [key for key, value in fingerprint.items() if found.get(key) != value]
    if differing:
        raise StudyError(
            f"{store.root} holds a study of other {' and '.join(differing)}; "
            "give another run_dir or delete it"
        )


def all_batches(session: Session) -> Iterable[Batch]:
    feed = session.feed
    for raw in feed.batches:
        yield feed.read(raw)


def mover(device: torch.device) -> Inputs:
    def move(raw: object) -> object:
        return map_tensors(raw, lambda tensor: tensor.to(device))

    return move


def outputs_to_json(outputs: OutputChoice) -> Json:
    if outputs is None or isinstance(outputs, str | int):
        return outputs
    return "function"
