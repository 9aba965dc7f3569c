# SPDX-License-Identifier: Apache-2.0
"""Which compressed networks can be exported to which format, with equal outputs?

The networks of ``export_nets.py``, each at 0.6 of its MACs by a data-free plan (what is exported is the
structure), in a process of its own. One row per network and format in
``benchmarks/results/export-cpu-torch<version>.csv``: exported and equal, or the error. A second run does what
is missing or was made by other versions; ``--again`` all. A format whose packages are not in this environment
is left out and said so: another environment fills its rows.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import slimrank as sr
from benchmarks import export_nets
from benchmarks.tables import Value, context, read_table, table_path, write_table
from slimrank.deploy._formats import FORMATS, format_named

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("onnx", "openvino", "torch", "executorch")
LIMIT_SECONDS, COMPRESS_SECONDS = 240, 900
Row = dict[str, Value]
KEY = ("source", "network", "format")
COLUMNS = (
    *KEY,
    "outcome",
    "max_error",
    "dynamic",
    "bytes",
    "seconds",
    "error_type",
    "operator",
    "module",
    "error",
    "why_fixed",
    "notes",
    "macs",
    "split",
    "narrowed",
    "compress_s",
    "packages",
)
# What made a row; with others it is made anew.
_VERSIONS = ("packages", "torch", "slimrank", "commit")


def packages_of(format: str) -> str:
    """The packages of a format with their versions, and transformers and timm, whose networks differ."""
    names = [*FORMATS[format].packages, "transformers", "timm", "torchvision"]
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            # Of a part of a package, which comes with the whole.
            continue
    return ", ".join(found)


def formats_here(wanted: Sequence[str]) -> list[str]:
    """The formats that can be written in this environment; those that cannot are printed."""
    there = []
    for name in wanted:
        try:
            format_named(name)
        except sr.SlimrankError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        there.append(name)
    return there


def cells(key: str, formats: Sequence[str], limit: int) -> list[Row]:
    """The rows of one network, from processes of their own: a new one for what a dead one left.

    Args:
        key: of the network.
        formats: to export to.
        limit: seconds for one export.

    Returns:
        A row for each format.
    """
    source, name = key.split("/")
    found: dict[str, Row] = {}
    while left := [format for format in formats if format not in found]:
        lines, died = ask(key, left, limit)
        for line in lines:
            if line.pop("step") == "done":
                found[str(line["format"])] = line
        if not died:
            break
        last = lines[-1] if lines else {}
        if "format" in last and last["format"] not in found:
            found[str(last["format"])] = {**last, "outcome": "died", "error": died}
        elif "format" not in last:
            for format in left:
                found[format] = {**last, "format": format, "outcome": "not compressed", "error": died}
    silent: Row = {"outcome": "died", "error": "the process ended without a word"}
    return [
        {"source": source, "network": name, "format": format, **found.get(format, silent)}
        for format in formats
    ]


def ask(key: str, formats: Sequence[str], limit: int) -> tuple[list[Row], str]:
    """What one process printed, and how it died; "" where it came to its end."""
    command = [sys.executable, str(ROOT / "benchmarks" / "one_export_run.py"), key, "--formats", *formats,
               "--limit", str(limit), "--compress-limit", str(COMPRESS_SECONDS)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0:
        return lines, ""
    if done.returncode == -signal.SIGALRM:
        is_export = bool(lines) and "format" in lines[-1]
        return lines, f"not done in {limit if is_export else COMPRESS_SECONDS} s"
    last = " ".join(done.stderr.splitlines()[-1:])[:250]
    return lines, f"exit {done.returncode}: {last}"


def keep(path: Path, new: Sequence[Row]) -> None:
    """Puts rows into the table, in the order of the list.

    Args:
        path: of the table; several runs may fill it at a time.
        new: rows; they replace those of the same network and format.
    """
    order = {tuple(key.split("/")): place for place, key in enumerate(export_nets.NETS)}
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = {tuple(str(row[column]) for column in KEY): row for row in (*read_table(path), *new)}
        known = [key for key in rows if key[:2] in order and key[2] in WANTED]
        known.sort(key=lambda key: (order[key[:2]], WANTED.index(key[2])))
        write_table(path, [{**dict.fromkeys((*COLUMNS, *context())), **rows[key]} for key in known])
    finally:
        os.close(folder)


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """How many networks came through, by format."""
    lines = []
    for format in WANTED:
        own = [row for row in rows if row["format"] == format]
        equal = [row for row in own if row["outcome"] == "exported"]
        free = sum(row["dynamic"] == "yes" for row in equal)
        if own:
            lines.append(f"{format}: {len(equal)} of {len(own)} exported and equal, {free} for any batch")
    return "\n".join(lines)


def main() -> None:
    """Fills the table and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="some networks, e.g. timm/levit_128s, or all of timm/")
    parser.add_argument("--formats", nargs="*", choices=WANTED, default=WANTED)
    parser.add_argument("--again", action="store_true", help="do rows again that are there")
    parser.add_argument("--failed", action="store_true", help="do rows again that are not equal")
    parser.add_argument("--keep", action="store_true", help="keep rows of other commits, if clean")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds for one export")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    args = parser.parse_args()
    path = table_path("export")
    # Whatever this process has: those that do the work have one.
    now = context() | {"threads": 1}
    there = {tuple(row[column] for column in KEY): row for row in read_table(path)}
    packages = {format: packages_of(format) for format in formats_here(args.formats)}
    wanted = [
        key for key in export_nets.NETS if not args.only or any(key.startswith(only) for only in args.only)
    ]

    def is_done(key: str, format: str) -> bool:
        old = there.get((*key.split("/"), format))
        if old is None or args.again or (args.failed and old["outcome"] != "exported"):
            return False
        made = now | {"packages": packages[format]}
        is_kept = args.keep and not old["commit"].endswith("-dirty")
        return all(old[name] == made[name] for name in _VERSIONS if not (is_kept and name == "commit"))

    def fill(key: str) -> list[Row]:
        """The rows that a network lacked."""
        formats = [format for format in packages if not is_done(key, format)]
        if not formats:
            return []
        return [
            {**row, "packages": packages[str(row["format"])], **now}
            for row in cells(key, formats, args.limit)
        ]

    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(fill, key) for key in wanted]):
            if rows := done.result():
                keep(path, rows)
                for row in rows:
                    print({name: row[name] for name in row if row[name] not in (None, "")}, flush=True)
    print(summary(read_table(path)))


if __name__ == "__main__":
    main()
