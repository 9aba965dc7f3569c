# SPDX-License-Identifier: Apache-2.0
"""Which architectures can be pruned and split, from end to end, and which Torch-Pruning prunes?

The list of ``zoo_coverage.py``. Each network in a process of its own: study with every method, joint plans at
0.6 and 0.4 of the MACs, built, counted against the plan, saved, loaded in a new process, exported. Beside it
Torch-Pruning 1.6.1 with its defaults. Neither gets a hint about the architecture. And some hundreds of random
networks (``tests/property/random_nets.py``). One row per network in
``benchmarks/results/zoo-cpu-torch<version>.csv``; a second run does what is missing or failed, ``--again``
all.
"""

import argparse
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import zoo_coverage
from benchmarks.children import last_row
from benchmarks.tables import Value, context, read_table, table_path, write_table

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS, TP_LIMIT_SECONDS = 1800, 120
# Seconds, wall; networks that take longer are named at the end.
SLOW_STUDY, SLOW_APPLY = 180, 90
N_RANDOM = 300
RANDOM = "random networks"
TOOLS = ("slimrank", "torch-pruning")
Row = dict[str, Value]
COLUMNS = (
    "network",
    "source",
    "ok",
    "failed_step",
    "error",
    "params",
    "layers",
    "layers_open",
    "layers_prunable",
    "layers_narrowed",
    "layers_splittable",
    "groups",
    "groups_live",
    "blocks",
    "why_frozen",
    "floor",
    *(f"{what}_{ratio}" for ratio in ("0.6", "0.4")
      for what in ("macs", "params", "split", "narrowed", "dropped", "divergence")),
    "export",
    *(f"{step}_s"
      for step in ("build", "study", "groups", "plan", "apply", "verify", "save", "load", "export")),
    "study_cpu_s",
    "plan_cpu_s",
    "apply_cpu_s",
    "peak_mb",
    "torch_pruning",
    "torch_pruning_macs",
    "torch_pruning_s",
)  # fmt: skip


def ask(key: str, *options: str, limit: int) -> Row:
    """The row of one network, from a process of its own.

    Args:
        key: of the network.
        options: for that process.
        limit: seconds after which it is killed.

    Returns:
        The last row that it printed; what killed it stands in "error".
    """
    command = [sys.executable, str(ROOT / "benchmarks" / "one_zoo_run.py"), key, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    printed, killed = last_row(command, limit, environment)
    source, name = key.split("/")
    row: Row = printed or {"network": name, "source": source}
    if killed:
        row["error"] = killed
    return row


def slimmed(key: str, limit: int) -> Row:
    """What slimrank makes of a network."""
    row = random_networks() if key.endswith(RANDOM) else ask(key, limit=limit)
    return {**row, "ok": "no" if row.get("error") else "yes"}


def pruned_by_others(key: str) -> Row:
    """What Torch-Pruning makes of a network: its columns."""
    if key.endswith(RANDOM):
        return {}
    row = ask(key, "--torch-pruning", limit=TP_LIMIT_SECONDS)
    columns = {"": outcome(row), "_macs": row.get("tp_macs"), "_s": row.get("tp_s")}
    return {f"torch_pruning{end}": value for end, value in columns.items()}


def outcome(row: Mapping[str, Value]) -> str:
    """What Torch-Pruning did, in a word or with the error."""
    if row.get("error"):
        return str(row["error"])
    return "ok" if float(row["tp_macs"] or 1) < 1 else "nothing pruned"


def random_networks() -> Row:
    """Runs the property tests on hundreds of random networks."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider",
               "--timeout", "0", "tests/property/test_random_nets.py"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLIMRANK_RANDOM_NETS": str(N_RANDOM)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    errors = re.findall(r"^E +(\S*Error.*)$", done.stdout, re.MULTILINE)
    row: Row = {"source": "here", "network": RANDOM, "layers": N_RANDOM}
    if done.returncode:
        row["error"] = (errors or done.stdout.splitlines()[-1:])[0][:300]
    return row


def summary(rows: Sequence[Mapping[str, Value]]) -> str:
    """How many ran through, of the networks of the list, and which took long."""
    nets = [row for row in rows if row["network"] != RANDOM and row["ok"]]
    ran = sum(row.get("ok") == "yes" for row in nets)
    tried = [row["torch_pruning"] for row in nets if row["torch_pruning"]]
    other = tried.count("ok")
    slow = [
        f"{row['network']} {row['study_s']} + {row['apply_s']}"
        for row in nets
        if float(row["study_s"] or 0) > SLOW_STUDY or float(row["apply_s"] or 0) > SLOW_APPLY
    ]
    return (
        f"slimrank: {ran} of {len(nets)} ran through; Torch-Pruning: {other} of {len(tried)}\n"
        f"over {SLOW_STUDY} s of study or {SLOW_APPLY} s of both applies: {', '.join(slow) or 'none'}"
    )


def keep(path: Path, row: Row) -> None:
    """Puts what was found of a network into the table, in the order of the list.

    Args:
        path: of the table; several runs may fill it at a time.
        row: some columns. Those of slimrank replace all of slimrank's that were there.
    """
    order = {tuple(key.split("/")): place for place, key in enumerate([*zoo_coverage.NETS, f"here/{RANDOM}"])}
    key = (str(row["source"]), str(row["network"]))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows: dict[tuple[str, ...], Row] = {
            (old["source"], old["network"]): dict(old)
            for old in read_table(path)
            if (old["source"], old["network"]) in order
        }
        old = rows.get(key, {})
        if "ok" in row:
            old = {column: value for column, value in old.items() if column.startswith("torch_pruning")}
        rows[key] = old | row
        every = sorted(rows.items(), key=lambda item: order[item[0]])
        write_table(path, [{**dict.fromkeys((*COLUMNS, *context())), **values} for _, values in every])
    finally:
        os.close(folder)


def main() -> None:
    """Fills the table and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="some networks, e.g. timm/levit_128s, or all of timm/")
    parser.add_argument("--again", action="store_true", help="do rows again that ran through")
    parser.add_argument("--keep", action="store_true", help="keep rows of other commits, if clean")
    parser.add_argument("--limit", type=int, default=LIMIT_SECONDS, help="seconds for one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, one thread each")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=TOOLS, help="fill these columns alone")
    args = parser.parse_args()
    path = table_path("zoo")
    # Whatever this process has: those that do the work have one.
    now = context() | {"threads": 1}
    there = {f"{row['source']}/{row['network']}": row for row in read_table(path)}
    wanted = [*zoo_coverage.NETS, f"here/{RANDOM}"]
    if args.only:
        wanted = [key for key in wanted if any(key.startswith(only) for only in args.only)]

    def fill(key: str) -> Row | None:
        """What the row lacked; None where it lacked nothing."""
        source, name = key.split("/")
        old = there.get(key, {})
        is_kept = args.keep and not old.get("commit", "").endswith("-dirty")
        is_done = old.get("ok") == "yes" and (is_kept or old["commit"] == now["commit"])
        found: Row = {}
        if "torch-pruning" in args.tools and (args.again or not old.get("torch_pruning")):
            found |= pruned_by_others(key)
        if "slimrank" in args.tools and (args.again or not is_done):
            found |= slimmed(key, args.limit) | now
        return {**found, "network": name, "source": source} if found else None

    with ThreadPoolExecutor(args.jobs) as pool:
        for done in as_completed([pool.submit(fill, key) for key in wanted]):
            row = done.result()
            if row is not None:
                keep(path, row)
                print({column: value for column, value in row.items() if value not in (None, "")}, flush=True)
    print(summary(read_table(path)))


if __name__ == "__main__":
    main()
