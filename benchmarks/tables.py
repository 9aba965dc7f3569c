# SPDX-License-Identifier: Apache-2.0
"""Tables of results: CSV files in ``benchmarks/results/`` that say when, with what and from which commit."""

import csv
import datetime
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

import slimrank as sr
from slimrank.records import Method

RESULTS = Path(__file__).parent / "results"
Value = str | float | int | None
Row = Mapping[str, Value]
# What the tables without channel pruning are about, whatever a study measures by default.
FACTORS: Sequence[Method] = ("weight_svd", "spatial_svd")


def context() -> dict[str, Value]:
    """What a row needs to be trusted: versions, threads, commit and date."""
    # The tables themselves change while benchmarks run; what counts is the code.
    is_dirty = bool(_git("status", "--porcelain", "--", ":/", ":!/benchmarks/results"))
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "slimrank": sr.__version__,
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if is_dirty else ""),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=RESULTS)
    return done.stdout.strip()


def table_path(name: str) -> Path:
    """Where a table lies.

    Args:
        name: of the benchmark.

    Returns:
        ``results/NAME-cpu-torchVERSION.csv``.
    """
    return RESULTS / f"{name}-cpu-torch{torch.__version__.split('+')[0]}.csv"


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table; none where there is no file.

    Args:
        path: of the file.

    Returns:
        The rows as they stand.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Replaces a table.

    Args:
        path: of the file.
        rows: at least one; columns that a row lacks stay empty.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def merge_table(path: Path, rows: Sequence[Row], key: Sequence[str]) -> None:
    """Replaces the rows of a table that have the same key as a new row, and keeps the others.

    Args:
        path: of the file.
        rows: the new rows.
        key: columns that name what a row is about.
    """

    def name(row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(str(row.get(column)) for column in key)

    new = {name(row) for row in rows}
    write_table(path, [*(row for row in read_table(path) if name(row) not in new), *rows])


def keep_rows(name: str, rows: Iterable[Row], key: Sequence[str]) -> None:
    """Prints rows as they are done, and merges them into a table once all are.

    Args:
        name: of the benchmark.
        rows: without context, which is added.
        key: as in ``merge_table``.
    """
    done = []
    for row in rows:
        done.append({**row, **context()})
        print(done[-1], flush=True)
    merge_table(table_path(name), done, key)
