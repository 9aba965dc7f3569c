# SPDX-License-Identifier: Apache-2.0
"""Do large networks at 224 px go through in minutes, in how much memory, and how near to the least possible?

Ten of torchvision's with random weights (``scale_nets.py``), 128 smooth random pictures, as called by
default, half of the MACs; each in a process of its own, which is killed after a while. Beside the seconds
stands the floor, one forward and backward over the pictures in the same process, and what the
decompositions would take at the speed of large matrix products (``one_scale_run.decomposition_flops``).
Memory is the peak of the process above what it held with model and images loaded. AIMET's time on ResNet-50
is estimated: its number of evaluations, times 2,000 images, times the measured seconds of a forward. One row
per network in ``benchmarks/results/scale-cpu-torch<version>.csv``; a second run does what is missing or was
made by another commit, ``--again`` all.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import scale_nets
from benchmarks.children import last_row
from benchmarks.tables import Row, Value, context, read_table, table_path, write_table

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 3600
# What made a row; with others it is made anew.
_VERSIONS = ("torch", "slimrank", "commit")


def ask(name: str, options: Sequence[str], limit: int) -> dict[str, Value]:
    """The row of one network, from a process of its own.

    Args:
        name: of the network.
        options: for that process.
        limit: seconds after which it is killed.

    Returns:
        The last row that it printed, and how it ended in "outcome": "ok", or what killed it and when.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "one_scale_run.py"), name, *options]
    row, killed = last_row(command, limit)
    outcome = killed or "ok"
    step = row.pop("failed_step", None)
    if outcome != "ok" and step:
        outcome = f"{outcome} ({step})"
    return {"network": name, "outcome": outcome, **row}


def keep(path: Path, new: Row) -> None:
    """Puts a row into the table, in the order of the list.

    Args:
        path: of the table.
        new: replaces the row of the same network.
    """
    rows: dict[str, Row] = {row["network"]: row for row in read_table(path) if row.get("network")}
    rows[str(new["network"])] = new
    ordered = [rows[name] for name in scale_nets.NETS if name in rows]
    columns = dict.fromkeys(column for row in ordered for column in row if column not in context())
    write_table(path, [{**dict.fromkeys((*columns, *context())), **row} for row in ordered])


def is_done(old: Mapping[str, str] | None, now: Row, *, failed: bool, kept: bool) -> bool:
    """Whether a row stands.

    Args:
        old: the row in the table; None where there is none.
        now: what a new row would be made by.
        failed: rows of networks that did not come through are made again.
        kept: rows of other commits stand, if these were clean.

    Returns:
        True where nothing is to do.
    """
    if old is None or (failed and old["outcome"] != "ok"):
        return False
    is_kept = kept and not old["commit"].endswith("-dirty")
    return all(old[name] == now[name] for name in _VERSIONS if not (is_kept and name == "commit"))


def main() -> None:
    """Fills the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=scale_nets.NETS, action="append", help="only these")
    parser.add_argument("--again", action="store_true", help="do rows again that are there")
    parser.add_argument("--failed", action="store_true", help="do rows again that did not come through")
    parser.add_argument("--keep", action="store_true", help="keep rows of other commits, if clean")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds for one network")
    parser.add_argument("--table", type=Path, default=table_path("scale"), help="another file, for a trial")
    for name in ("samples", "pixels", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(scale_nets, name.upper()))
    args = parser.parse_args()
    options = [
        text for name in ("samples", "pixels", "batch") for text in (f"--{name}", str(getattr(args, name)))
    ]
    is_trial = any(getattr(args, name) != getattr(scale_nets, name.upper()) for name in ("samples", "pixels"))
    if is_trial and args.table == table_path("scale"):
        raise SystemExit("rows of other sizes do not belong into the table; give --table FILE")
    print(f"{os.cpu_count()} cores", context(), flush=True)
    for name in args.network or scale_nets.NETS:
        there = {row["network"]: row for row in read_table(args.table) if row.get("network")}
        now = context()
        if not args.again and is_done(there.get(name), now, failed=args.failed, kept=args.keep):
            continue
        row = {**ask(name, options, args.limit), **now}
        keep(args.table, row)
        print({column: value for column, value in row.items() if value not in (None, "")}, flush=True)


if __name__ == "__main__":
    main()
