# SPDX-License-Identifier: Apache-2.0
"""Measures the files of a network that lie beside this one, in onnxruntime, on the machine where it runs.

``slimrank.prepare_latency`` puts a copy of this file, as ``measure.py``, beside the variants of a network.
Copy that folder to the machine, and run ``python measure.py`` in it. It needs Python 3.10 or later, numpy and
onnxruntime (``pip install numpy onnxruntime``), and neither slimrank nor torch. It takes some minutes, best
with nothing else running, and writes ``measured.json`` after every file: run again, it goes on where it was.
Copy ``measured.json`` back; ``slimrank.collect_latency`` makes a latency table of it.

slimrank itself times files with the same functions, so that tables of both ways are the same.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# This file, and the files of a folder that was prepared.
SCRIPT_PATH = Path(__file__)
SCRIPT_FILE, PREPARED_FILE, MEASURED_FILE = "measure.py", "prepared.json", "measured.json"
# Of both files; a higher number would keep older versions from misreading a new layout.
PREPARED_FORMAT = 2
# The oldest onnxruntime that reads the files: as in the extra of slimrank.
OLDEST_ONNXRUNTIME = "1.22"
# What the files are called that are not variants: what the hardware's step is found with, and the original.
STEP, ORIGINAL = "step", "original"

# Turns before any is timed: memory is asked for and kernels are chosen in the first ones.
_WARM_UP_TURNS = 3
# Turns of all runs: at least so many, and more while the seconds last.
_MIN_TURNS, _MAX_TURNS = 10, 200
# Seconds for which a run is repeated untimed in each of its turns, and then for as many timed: the run before
# it has emptied the caches, and where it will be used nothing else runs in between.
_SETTLING_SECONDS = 0.01
# Runs that take so many seconds fill the caches themselves, and are not repeated untimed.
_LONG_SECONDS = 0.2
# Of two runs that are compared, the share of turns that count where other work on the machine disturbed some,
# those in which they took least, and how many at least: it only adds, and slows a large network unlike a
# small one. Where ratios spread by no more than the last number, all turns count: to choose among them would
# favour whichever run repeats less closely.
_QUIET_SHARE, _QUIET_TURNS, _QUIET_SPREAD = 0.2, 3, 0.03
# A single thread takes no more of the processor than of the clock, but for what clocks repeat. A clock of the
# processor that ticks coarsely says more in some turns.
_BUSY = 1.01
# Runs with a profile that are left out, and runs that count: of one node, the share of runs below which its
# time is taken, since other work on the machine only adds.
PROFILE_WARM_UP, PROFILE_RUNS, PROFILE_SHARE = 3, 30, 0.2
# Profiles of a file at most: where nodes add up to more than a whole run, other work stretched them.
PROFILES = 4
# What onnxruntime hangs on the name of an event that is the run of a node.
_EVENT = "_kernel_time"
# Numbers of fields in the messages of ONNX: graph of a model, node of a graph, outputs and name of a node.
_GRAPH, _NODE, _OUTPUT, _NAME = 7, 1, 2, 3
_CPU_FILE = Path("/proc/cpuinfo")


class Times(NamedTuple):
    """What one batch takes.

    Attributes:
        milliseconds: median over the turns that count.
        spread: interquartile range over the median, of all turns.
    """

    milliseconds: float
    spread: float


class Comparison(NamedTuple):
    """Times of two runs that took turns; medians are of the quietest where other work disturbed some.

    Attributes:
        before: of the first.
        after: of the second.
        ratio: median of after over before, turn by turn.
        spread: interquartile range over its median, of all turns.
    """

    before: Times
    after: Times
    ratio: float
    spread: float


class RunNode(NamedTuple):
    """A node of a file as onnxruntime runs it.

    Attributes:
        name: in the runtime.
        kind: of the operation, in the runtime's word.
        values: that it makes, in the graph as the runtime made it.
        nanoseconds: of one run.
    """

    name: str
    kind: str
    values: tuple[str, ...]
    nanoseconds: float


class MeasureError(Exception):
    """A folder, or a runtime, that nothing can be measured with."""


def compare_in_turns(
    before: Callable[[], object],
    after: Callable[[], object],
    *,
    threads: int,
    seconds: float,
    clocks: tuple[Callable[[], float], Callable[[], float]] = (time.perf_counter, time.process_time),
) -> Comparison:
    """Compares two runs that take turns.

    Runs of one thread are timed in seconds of the processor, which other work on the machine does not
    stretch; those of several, and of runtimes whose second thread waits busily, by the clock.

    Args:
        before: runs one batch.
        after: likewise.
        threads: that both have.
        seconds: that it takes, or as long as the fewest turns do.
        clocks: of the wall and of the processor, in seconds.

    Returns:
        Times and their ratio.
    """
    found = take_turns((before, after), seconds=seconds, clocks=clocks)
    is_told = all(0 < processor <= _BUSY * wall for turns in found for wall, processor in turns)
    clock = 1 if threads == 1 and is_told else 0
    turns = [(sooner[clock], later[clock]) for sooner, later in zip(*found, strict=True)]
    spread = told_times([later / sooner for sooner, later in turns]).spread
    quiet = turns if spread <= _QUIET_SPREAD else _quietest(turns)
    first, second = (
        told_times(of_all)._replace(milliseconds=1000 * statistics.median(of_quiet))
        for of_all, of_quiet in zip(zip(*turns, strict=True), zip(*quiet, strict=True), strict=True)
    )
    return Comparison(
        before=first,
        after=second,
        ratio=statistics.median(later / sooner for sooner, later in quiet),
        spread=spread,
    )


def _quietest(turns: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """The turns in which both runs together took least, each counted by its own shortest time."""
    least = [min(times) for times in zip(*turns, strict=True)]
    ordered = sorted(turns, key=lambda turn: turn[0] / least[0] + turn[1] / least[1])
    return ordered[: max(_QUIET_TURNS, int(_QUIET_SHARE * len(turns)))]


def take_turns(
    runs: Sequence[Callable[[], object]], *, seconds: float, clocks: Sequence[Callable[[], float]]
) -> list[list[tuple[float, ...]]]:
    """Times runs that take turns, each with caches as it leaves them itself.

    Args:
        runs: each runs one batch.
        seconds: that it takes by the first clock, or as long as the fewest turns do.
        clocks: in seconds.

    Returns:
        For each run, for each of its turns, what it took by each clock.
    """
    for _ in range(_WARM_UP_TURNS):
        for run in runs:
            run()
    found: list[list[tuple[float, ...]]] = [[] for _ in runs]
    start = clocks[0]()
    for count in range(_MAX_TURNS):
        if count >= _MIN_TURNS and clocks[0]() - start >= seconds:
            break
        for run, turns in zip(runs, found, strict=True):
            if not turns or turns[-1][0] < _LONG_SECONDS:
                _repeat(run, clocks)
            turns.append(_repeat(run, clocks))
    return found


def _repeat(run: Callable[[], object], clocks: Sequence[Callable[[], float]]) -> tuple[float, ...]:
    """Runs at least once, and until it has settled; what one run takes by each clock."""
    starts, count = [clock() for clock in clocks], 0
    while not count or clocks[0]() - starts[0] < _SETTLING_SECONDS:
        run()
        count += 1
    return tuple((clock() - start) / count for clock, start in zip(clocks, starts, strict=True))


def told_times(seconds: Sequence[float]) -> Times:
    """Median and spread of several times."""
    middle = statistics.median(seconds)
    first, _, third = statistics.quantiles(seconds, n=4)
    return Times(milliseconds=1000 * middle, spread=(third - first) / middle if middle else 0.0)


def profile_time(times: Sequence[float], share: float = PROFILE_SHARE) -> float:
    """The time of one node from its times in several runs: one that a share of them stay below."""
    return sorted(times)[int(share * (len(times) - 1))]


def session_options(ort: Any, threads: int) -> Any:  # noqa: ANN401 - onnxruntime has no types
    """How onnxruntime runs a file: on so many threads, and silent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Errors only: it warns of what it leaves to other devices, and of initializers that nothing reads.
    options.log_severity_level = 3
    return options


def profile_session(
    open_session: Callable[[Path, Path], Any],
    feeds_of: Callable[[Any], Mapping[str, object]],
    folder: Path,
) -> list[RunNode]:
    """Runs a file some thirty times with the profile of onnxruntime.

    Args:
        open_session: opens a session whose profile starts with one path, and that writes the graph which the
            runtime made to another.
        feeds_of: the inputs of a session.
        folder: to write both to.

    Returns:
        Of each node the time that a fifth of its runs stay below.
    """
    optimised = folder / "optimised.onnx"
    session = open_session(folder / "profile", optimised)
    feeds = feeds_of(session)
    for _ in range(PROFILE_WARM_UP + PROFILE_RUNS):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return node_times(events, values_by_node(optimised.read_bytes()))


def least_times(
    nodes: Sequence[RunNode], profile: Callable[[], Sequence[RunNode]], milliseconds: float
) -> list[RunNode]:
    """Profiles a file again while its nodes add up to more than a run: other work must have stretched them.

    Args:
        nodes: of its first profile.
        profile: takes another.
        milliseconds: of a whole run.

    Returns:
        Of each node the shortest time.
    """
    found = list(nodes)
    for _ in range(PROFILES - 1):
        if sum(node.nanoseconds for node in found) <= 1e6 * milliseconds:
            break
        again = profile()
        if [node[:3] for node in again] == [node[:3] for node in found]:
            found = [min(pair, key=lambda node: node.nanoseconds) for pair in zip(found, again, strict=True)]
    return found


def node_times(events: Sequence[Mapping[str, Any]], values: Mapping[str, tuple[str, ...]]) -> list[RunNode]:
    """Times by node.

    Args:
        events: of onnxruntime's profile.
        values: that each node makes, in the graph as onnxruntime made it.

    Returns:
        The nodes, in the order of their first runs.
    """
    micro: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        name, args = str(event.get("name", "")), event.get("args")
        if name.endswith(_EVENT) and isinstance(args, dict) and "op_name" in args:
            key = (name[: -len(_EVENT)], str(args["op_name"]), str(args.get("node_index")))
            micro.setdefault(key, []).append(float(str(event["dur"])))
    return [
        RunNode(
            name=name,
            kind=kind,
            values=tuple(values.get(name, ())),
            nanoseconds=1000 * profile_time(found[PROFILE_WARM_UP:]),
        )
        for (name, kind, _), found in micro.items()
    ]


def values_by_node(data: bytes) -> dict[str, tuple[str, ...]]:
    """Names of the values that each node of an ONNX file makes; read here, as ``onnx`` may not be installed.

    Args:
        data: the file.

    Returns:
        By the name of the node.

    Raises:
        ValueError: it is no ONNX file.
    """
    found = {}
    for number, graph in _fields(memoryview(data)):
        if number != _GRAPH:
            continue
        for inner, node in _fields(graph):
            if inner == _NODE:
                texts = [(field, bytes(text)) for field, text in _fields(node) if field in (_OUTPUT, _NAME)]
                name = b"".join(text for field, text in texts if field == _NAME)
                made = [text.decode() for field, text in texts if field == _OUTPUT]
                found[name.decode()] = tuple(made)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message of protobuf that are texts or messages; numbers are passed over."""
    position = 0
    while position < len(data):
        key, position = _number(data, position)
        kind = key & 7
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 0:
            _, position = _number(data, position)
        elif kind == 2:
            size, position = _number(data, position)
            yield key >> 3, data[position : position + size]
        elif not size:
            raise ValueError(f"a field of kind {kind} at byte {position} is none of an ONNX file")
        position += size


def _number(data: memoryview, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def machine_name() -> str:
    """Model of the processor, cores and architecture: times of one machine say little of another."""
    model = platform.processor()
    if _CPU_FILE.exists():
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _CPU_FILE.read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    return f"{model or 'unknown processor'}, {os.cpu_count()} cores, {platform.machine()}"


def measure_folder(folder: Path, ort: Any, say: Callable[[str], object]) -> None:  # noqa: ANN401
    """Measures what a folder holds, and writes it there after every file.

    Args:
        folder: that was prepared.
        ort: onnxruntime.
        say: called with a line of progress.

    Raises:
        MeasureError: files are missing or damaged, onnxruntime is too old or refuses a file, or what was
            measured so far is of another machine or version.
    """
    if _version(ort.__version__) < _version(OLDEST_ONNXRUNTIME):
        raise MeasureError(
            f"onnxruntime {ort.__version__} is too old; it takes {OLDEST_ONNXRUNTIME} or later: "
            "pip install -U onnxruntime"
        )
    prepared = _prepared(folder)
    done = _measured_so_far(folder, _about(prepared, ort))
    names, files = list(prepared["files"]), done["files"]
    if files:
        say(f"goes on: {len(files)} of {len(names)} files are measured")
    original = _Opened(ort, folder, prepared, ORIGINAL)
    began, first = time.monotonic(), len(files)
    for number, name in enumerate(names):
        if name in files:
            continue
        file = original if name == ORIGINAL else _Opened(ort, folder, prepared, name)
        nodes, words, told = file.nodes(), "", dict[str, object]()
        if name not in (STEP, ORIGINAL):
            threads, seconds = prepared["conditions"]["threads"], prepared["seconds"]
            compared = compare_in_turns(original.run, file.run, threads=threads, seconds=seconds)
            told.update(
                before_ms=compared.before.milliseconds,
                before_spread=compared.before.spread,
                ratio=compared.ratio,
                spread=compared.spread,
            )
            nodes = least_times(nodes, file.nodes, compared.after.milliseconds)
            words = (
                f": {compared.after.milliseconds:.3f} ms, {compared.ratio:.2f} of the original's time "
                f"(spread {compared.spread:.0%})"
            )
        files[name] = {"nodes": [node._asdict() for node in nodes], **told}
        _write_whole(folder / MEASURED_FILE, json.dumps(done, indent=1, sort_keys=True))
        left = (time.monotonic() - began) / (number + 1 - first) * (len(names) - number - 1)
        say(f"{number + 1} of {len(names)}, {name}{words}; about {left:.0f} s left")
    say(f"{folder / MEASURED_FILE} is complete: copy it back, and call slimrank.collect_latency")


class _Opened:
    """A file of the folder, opened in onnxruntime when it is first run.

    Args:
        ort: onnxruntime.
        folder: that was prepared.
        prepared: what is in it.
        name: of the file.
    """

    def __init__(self, ort: Any, folder: Path, prepared: Mapping[str, Any], name: str) -> None:  # noqa: ANN401
        self._ort, self._threads = ort, prepared["conditions"]["threads"]
        entry = prepared["files"][name]
        self._path = folder / entry["file"]
        with np.load(folder / entry["input"], allow_pickle=False) as arrays:
            self._inputs = {key: arrays[f"arr_{index}"] for index, key in enumerate(entry["input_names"])}
        self._session: Any = None

    def run(self) -> None:
        """Runs the batch once."""
        if self._session is None:
            self._session = self._open(None, None)
        self._session.run(None, self._inputs)

    def nodes(self) -> list[RunNode]:
        """Runs the batch with the profile."""
        with tempfile.TemporaryDirectory(prefix="measure-") as scratch:
            return profile_session(self._open, lambda _: self._inputs, Path(scratch))

    def _open(self, profile: Path | None, optimised: Path | None) -> Any:  # noqa: ANN401
        options = session_options(self._ort, self._threads)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        try:
            return self._ort.InferenceSession(
                self._path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise MeasureError(
                f"onnxruntime {self._ort.__version__} refuses {self._path.name}: {error}; copy the folder "
                "anew, or pip install -U onnxruntime"
            ) from error


def _prepared(folder: Path) -> dict[str, Any]:
    """What the folder holds, whose files are there and whole."""
    path = folder / PREPARED_FILE
    try:
        prepared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = prepared["files"]
    except FileNotFoundError as error:
        raise MeasureError(f"{path} is missing; copy the whole folder that prepare_latency wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"{path} is damaged ({error}); copy the folder anew") from error
    if prepared["format"] != PREPARED_FORMAT:
        raise MeasureError(
            f"{path} has format {prepared['format']}, and this script reads {PREPARED_FORMAT}; take the "
            f"{SCRIPT_FILE} that came with it"
        )
    for entry in files.values():
        for key in ("file", "input"):
            found = folder / entry[key]
            if not found.is_file():
                raise MeasureError(f"{found} is missing; copy the whole folder that prepare_latency wrote")
            if found.stat().st_size != entry[f"{key}_bytes"]:
                raise MeasureError(
                    f"{found} has {found.stat().st_size} bytes, not {entry[f'{key}_bytes']}; copy it anew"
                )
    return prepared


def _about(prepared: Mapping[str, Any], ort: Any) -> dict[str, object]:  # noqa: ANN401
    """What measurements are of: those that a stopped run left must be of the same."""
    return {
        "format": PREPARED_FORMAT,
        "prepared": prepared["id"],
        "machine": machine_name(),
        "onnxruntime": ort.__version__,
    }


def _measured_so_far(folder: Path, about: Mapping[str, object]) -> dict[str, Any]:
    """What was measured before, under the same conditions; with no files where there is nothing."""
    path = folder / MEASURED_FILE
    if not path.exists():
        return {**about, "files": {}}
    try:
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{key} ({done[key]} there, {value} here)" for key, value in about.items() if done[key] != value
        ]
        done["files"] = dict(done["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"{path} is damaged ({error}); delete it and run again") from error
    if differing:
        raise MeasureError(
            f"{path} was measured with another {', '.join(differing)}; delete it and run again"
        )
    return done


def _write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a run that is killed leaves the old one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def main() -> None:
    """Measures the folder that this file is in."""
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    # Read by onnxruntime when it is imported: it reports nothing.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort  # noqa: PLC0415 - slimrank imports this file without it
    except ImportError as error:
        sys.exit(f"{SCRIPT_FILE} needs onnxruntime ({error}): pip install onnxruntime")
    try:
        measure_folder(SCRIPT_PATH.resolve().parent, ort, lambda line: sys.stderr.write(f"{line}\n"))
    except (MeasureError, OSError) as error:
        sys.exit(f"{SCRIPT_FILE}: {error}")


if __name__ == "__main__":
    main()
