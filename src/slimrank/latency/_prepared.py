# SPDX-License-Identifier: Apache-2.0
"""The two files of a folder that is measured elsewhere: what was prepared, and what was measured there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from slimrank._errors import LatencyError, PlanError
from slimrank.deploy import (
    MEASURED_FILE,
    PREPARED_FILE,
    PREPARED_FORMAT,
    SCRIPT_FILE,
    GraphNode,
    RunNode,
)
from slimrank.files import (
    Json,
    as_flag,
    as_list,
    as_number,
    as_object,
    as_text,
    check_format,
    from_text,
    read_text,
    to_text,
    write_text,
)
from slimrank.latencies import (
    ChoiceFields,
    Conditions,
    choice_from,
    choice_to_json,
    conditions_from,
    conditions_to_json,
)

_PREPARED = ("format", "id", "conditions", "seconds", "files")
_FILE = ("file", "file_bytes", "file_sha256", "input", "input_bytes", "input_names", "graph", "variant")
_GRAPH_NODE = ("module", "inputs", "is_product", "has_weight")
_MEASURED = ("format", "prepared", "machine", "onnxruntime", "files")
_COMPARED = ("before_ms", "before_spread", "ratio", "spread")
_PREPARE_AGAIN = "give the folder that prepare_latency wrote, or prepare it again"
_MEASURE_AGAIN = f"run {SCRIPT_FILE} in the folder there, and copy {MEASURED_FILE} back"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFile:
    """A file that is measured elsewhere.

    Attributes:
        file: its name in the folder.
        input: name of the file with its batch.
        input_names: of the arrays in it, as the network calls them.
        graph: nodes by the values that they make.
        variant: what was done to the network; None for the network itself, and for that of the step.
    """

    file: str
    input: str
    input_names: tuple[str, ...]
    graph: Mapping[str, GraphNode]
    variant: ChoiceFields | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a folder holds.

    Attributes:
        id: digest of all of it: what was measured belongs to one folder.
        conditions: under which is measured; machine and runtime are those where it was prepared.
        files: by name, in the order of their names.
    """

    id: str
    conditions: Conditions
    files: Mapping[str, PreparedFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFile:
    """What a file took.

    Attributes:
        nodes: by the runtime's profile.
        compared: times of a variant beside the original, as ``VariantTime`` has them; none of other files.
    """

    nodes: Sequence[RunNode]
    compared: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredElsewhere:
    """What was measured of a folder.

    Attributes:
        machine: where.
        onnxruntime: its version there.
        files: by name.
    """

    machine: str
    onnxruntime: str
    files: Mapping[str, MeasuredFile]


def write_prepared(
    folder: Path, conditions: Conditions, files: Mapping[str, PreparedFile], *, seconds: float
) -> None:
    """Writes what a folder holds, whose other files are there.

    Args:
        folder: to write to.
        conditions: under which is measured.
        files: by name.
        seconds: that each variant takes turns with the original.

    Raises:
        FileError: the file cannot be written.
    """
    content: dict[str, Json] = {
        "format": PREPARED_FORMAT,
        "conditions": conditions_to_json(conditions),
        "seconds": seconds,
        "files": {name: _file_to_json(file, folder) for name, file in files.items()},
    }
    content["id"] = sha256(to_text(content).encode()).hexdigest()
    write_text(folder / PREPARED_FILE, to_text(content), what="prepared latency table")


def read_prepared(folder: Path) -> Prepared:
    """Reads what a folder holds.

    Args:
        folder: that ``prepare_latency`` wrote.

    Returns:
        What is in it.

    Raises:
        FileError: the file is missing or cannot be read.
        LatencyError: it was altered, cut short, or is of another format.
    """
    path = folder / PREPARED_FILE
    where = f"prepared latency table {path}"
    text = read_text(path, where, advice=_PREPARE_AGAIN, error=LatencyError)
    try:
        content = as_object(from_text(text, where), where)
        check_format(
            content.get("format"), PREPARED_FORMAT, where=where, advice=_PREPARE_AGAIN, error=LatencyError
        )
        as_object(content, where, required=_PREPARED)
        rest = {key: value for key, value in content.items() if key != "id"}
        if sha256(to_text(rest).encode()).hexdigest() != content["id"]:
            raise LatencyError(f"{where}: it was altered after it was written; {_PREPARE_AGAIN}")
        files = as_object(content["files"], f"{where}: files")
        return Prepared(
            id=as_text(content["id"], where),
            conditions=conditions_from(content["conditions"], f"{where}: conditions"),
            files={name: _file_from(files[name], f"{where}: files[{name!r}]") for name in sorted(files)},
        )
    except PlanError as error:
        raise LatencyError(str(error)) from error


def read_measured(folder: Path, prepared: Prepared) -> MeasuredElsewhere:
    """Reads what was measured of a folder.

    Args:
        folder: that ``prepare_latency`` wrote.
        prepared: what it holds.

    Returns:
        All that was measured.

    Raises:
        FileError: the file is missing or cannot be read.
        LatencyError: it is cut short or damaged, of another folder, or not all files were measured.
    """
    path = folder / MEASURED_FILE
    where = f"measured times {path}"
    if not path.exists():
        raise LatencyError(f"{path} is missing: nothing was measured yet; {_MEASURE_AGAIN}")
    text = read_text(path, where, advice=_MEASURE_AGAIN, error=LatencyError)
    try:
        content = as_object(from_text(text, where), where)
        check_format(
            content.get("format"), PREPARED_FORMAT, where=where, advice=_MEASURE_AGAIN, error=LatencyError
        )
        as_object(content, where, required=_MEASURED)
        if content["prepared"] != prepared.id:
            raise LatencyError(f"{where}: it was measured in another folder than this; {_MEASURE_AGAIN}")
        files = as_object(content["files"], f"{where}: files")
        missing = [name for name in prepared.files if name not in files]
        if missing:
            raise LatencyError(
                f"{where}: {len(prepared.files) - len(missing)} of {len(prepared.files)} files are measured, "
                f"{missing[0]!r} is not; {_MEASURE_AGAIN}"
            )
        return MeasuredElsewhere(
            machine=as_text(content["machine"], f"{where}: machine"),
            onnxruntime=as_text(content["onnxruntime"], f"{where}: onnxruntime"),
            files={
                name: _measured_from(
                    files[name], f"{where}: files[{name!r}]", is_compared=file.variant is not None
                )
                for name, file in prepared.files.items()
            },
        )
    except PlanError as error:
        raise LatencyError(str(error)) from error


def _file_to_json(file: PreparedFile, folder: Path) -> Json:
    data = (folder / file.file).read_bytes()
    return {
        "file": file.file,
        "file_bytes": len(data),
        "file_sha256": sha256(data).hexdigest(),
        "input": file.input,
        "input_bytes": (folder / file.input).stat().st_size,
        "input_names": list(file.input_names),
        "graph": {
            value: {**{key: getattr(node, key) for key in _GRAPH_NODE}, "inputs": list(node.inputs)}
            for value, node in file.graph.items()
        },
        "variant": None if file.variant is None else choice_to_json(**file.variant),
    }


def _file_from(value: Json, where: str) -> PreparedFile:
    found = as_object(value, where, required=_FILE)
    variant = found["variant"]
    graph = as_object(found["graph"], where)
    return PreparedFile(
        file=as_text(found["file"], where),
        input=as_text(found["input"], where),
        input_names=_texts(found["input_names"], where),
        graph={value: _node_from(node, where) for value, node in graph.items()},
        variant=None if variant is None else choice_from(variant, where),
    )


def _node_from(value: Json, where: str) -> GraphNode:
    found = as_object(value, where, required=_GRAPH_NODE)
    return GraphNode(
        module=as_text(found["module"], where),
        inputs=_texts(found["inputs"], where),
        is_product=as_flag(found["is_product"], where),
        has_weight=as_flag(found["has_weight"], where),
    )


def _measured_from(value: Json, where: str, *, is_compared: bool) -> MeasuredFile:
    compared = _COMPARED if is_compared else ()
    found = as_object(value, where, required=("nodes", *compared))
    times = {key: as_number(found[key], f"{where}: {key}") for key in compared}
    nodes = [_run_node_from(node, where) for node in as_list(found["nodes"], where)]
    if not nodes or any(times[key] <= 0 for key in ("before_ms", "ratio") if key in times):
        raise PlanError(f"{where}: it holds no times; delete {MEASURED_FILE} there, and {_MEASURE_AGAIN}")
    return MeasuredFile(nodes=nodes, compared=times)


def _run_node_from(value: Json, where: str) -> RunNode:
    found = as_object(value, where, required=RunNode._fields)
    return RunNode(
        name=as_text(found["name"], where),
        kind=as_text(found["kind"], where),
        values=_texts(found["values"], where),
        nanoseconds=as_number(found["nanoseconds"], where),
    )


def _texts(value: Json, where: str) -> tuple[str, ...]:
    return tuple(as_text(entry, where) for entry in as_list(value, where))
