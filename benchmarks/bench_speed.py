# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of study + plan + apply beside AIMET's greedy procedure, and their growth.

Half of the MACs, everything included on both sides but imports. slimrank runs in processes of their own
before AIMET's run and twice after it, with the two SVD methods and as called by default; medians and ratios.
AIMET's scheme is the one that suits the network. Beside it AIMET's own procedure, eval scores on the same
labelled pictures and greedy selection, done by slimrank. Tables ``speed``, ``speed-scores`` and ``growth``
in ``benchmarks/results/``.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

from benchmarks.reference import LABELLED, ROOT, RUNS, SCHEMES, compressed, one_evaluation
from benchmarks.tables import Row, context, merge_table, table_path
from benchmarks.tasks.tasks import TASKS

RATIO = 0.5
N_IMAGES = 512
GROWTH_IMAGES = 128
SCALES = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4))
PHASES = (
    "capture",
    "channels",
    "gradients",
    "moments",
    "curves",
    "anchors",
    "groups",
    "blocks",
    "apply",
    "verify",
)


def _run(*arguments: str, script: str = "one_run") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over runs of the same thing."""

    def median(*path: str) -> float:
        values = []
        for run in runs:
            value: Any = run
            for key in path:
                value = value.get(key, 0.0)
            values.append(float(value))
        return statistics.median(values)

    names = ("study", "plan", "apply", "further_plan", "floor", "compress", "peak_mb")
    return {
        "seconds": round(median("seconds"), 2),
        "cpu_seconds": round(median("cpu"), 2),
        **{f"{name}" if name == "peak_mb" else f"{name}_seconds": round(median(name), 3) for name in names},
        **{f"phase_{phase}": round(median("phases", phase), 2) for phase in PHASES},
        "times_floor": round(median("seconds") / median("floor"), 1),
        "times_floor_cpu": round(median("cpu") / median("floor_cpu"), 1),
        # Of sr.compress over study + plan + apply; 0 where it was not run.
        "compress_over_parts_cpu": round(median("compress_cpu") / median("cpu"), 2),
    }


def speed_rows(network: str, *, reuse: bool) -> list[Row]:
    """Slimrank and AIMET on one network, interleaved.

    Args:
        network: key of ``TASKS``.
        reuse: take AIMET's last run, and time one of its evaluations to see that the machine is as it was.

    Returns:
        A row for the two SVD methods, and one for the default call.
    """
    arguments = (network, "--images", str(N_IMAGES), "--ratio", str(RATIO))
    ours: dict[str, list[dict[str, Any]]] = {"svd": [], "all": []}

    def run_ours() -> None:
        for methods, runs in ours.items():
            runs.append(_run(*arguments, "--methods", methods, "--compress"))

    run_ours()
    theirs = {}
    for scheme in SCHEMES[network][:1]:
        if not reuse:
            shutil.rmtree(RUNS / f"{network}-{scheme}", ignore_errors=True)
        theirs[scheme], _ = compressed(network, scheme)
        run_ours()
    run_ours()
    now = one_evaluation(network)["seconds"]
    rows = []
    for (scheme, results), (methods, runs) in itertools.product(theirs.items(), ours.items()):
        entry = next(entry for entry in results["ratios"] if entry["ratio"] == RATIO)
        seconds = results["seconds_table"] + entry["seconds"]
        rows.append(
            {
                "network": network,
                "methods": methods,
                "aimet_scheme": scheme,
                "aimet_seconds": round(seconds, 1),
                "aimet_evaluations": results["evaluations_table"] + entry["evaluations"],
                "aimet_evaluation_seconds": round(
                    results["ratios"][0]["seconds_in_evaluations"] / results["ratios"][0]["evaluations"], 2
                ),
                "original_evaluation_seconds": round(now, 2),
                "aimet_run": "kept" if reuse else "in this run",
                "aimet_labelled_images": LABELLED,
                "unlabelled_images": N_IMAGES,
                "times_faster": round(seconds / _summary(runs)["seconds"], 1),
                "runs": len(runs),
                **_summary(runs),
            }
        )
    return rows


def score_row(network: str, row: Row) -> Row:
    """AIMET's own procedure done by slimrank, with the cache of prefixes and without.

    Args:
        network: key of ``TASKS``.
        row: of ``speed_rows``, for AIMET's side.

    Returns:
        One row.
    """
    method = str(row["aimet_scheme"])
    arguments = (network, "--method", method, "--images", str(N_IMAGES), "--ratio", str(RATIO))
    found = _run(*arguments, "--test", script="one_score_run")
    plain = _run(*arguments, "--no-prefix-cache", script="one_score_run")
    return {
        "network": network,
        "method": method,
        "aimet_seconds": row["aimet_seconds"],
        "aimet_evaluations": row["aimet_evaluations"],
        "seconds": round(found["seconds"], 1),
        "times_faster": round(float(str(row["aimet_seconds"])) / found["seconds"], 1),
        "evaluations": found["evaluations"],
        "labelled_images": LABELLED,
        "scores_seconds": round(found["scores"], 1),
        "scores_seconds_without_prefix_cache": round(plain["scores"], 1),
        "prefix_cache_saves": round(1 - found["scores"] / plain["scores"], 3),
        "macs_counted": round(found["macs_counted"], 4),
        "points_lost": round(found["points_lost"], 2),
    }


def growth_rows() -> list[Row]:
    """The ResNet-like with random weights, deeper and wider.

    Returns:
        A row per size.
    """
    rows = []
    for depth, width in SCALES:
        sizes = ("--images", str(GROWTH_IMAGES), "--depth", str(depth), "--width", str(width))
        runs = [_run("scaled", *sizes)]
        row: Row = {
            "depth": depth,
            "width": width,
            "macs": runs[0]["macs"],
            "images": GROWTH_IMAGES,
            **_summary(runs),
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Runs what is asked for, and merges it into the tables."""
    parser = argparse.ArgumentParser(description="Speed beside AIMET, and growth.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--growth", action="store_true", help="only the table of growth")
    parser.add_argument("--reuse", action="store_true", help="time slimrank anew, take AIMET's last run")
    args = parser.parse_args()
    for name in [] if args.growth else args.network or sorted(TASKS):
        rows = [{**row, **context()} for row in speed_rows(name, reuse=args.reuse)]
        print(*rows, sep="\n", flush=True)
        merge_table(table_path("speed"), rows, ("network", "aimet_scheme", "methods"))
        scored = [{**score_row(name, row), **context()} for row in rows if row["methods"] == "svd"]
        print(*scored, sep="\n", flush=True)
        merge_table(table_path("speed-scores"), scored, ("network", "method"))
    if args.growth or not args.network:
        rows = [{**row, **context()} for row in growth_rows()]
        merge_table(table_path("growth"), rows, ("depth", "width"))


if __name__ == "__main__":
    main()
