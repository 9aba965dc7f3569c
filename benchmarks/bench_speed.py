# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of study + plan + apply beside AIMET's greedy procedure, and their growth.

Half of the MACs, everything included on both sides but imports. slimrank runs in processes of their own
before, between and after AIMET's runs, with the two SVD methods and as called by default; medians of three
and ratios. AIMET's scheme is the one that suits the network; where its channel pruning works as well, its
recipe of both, spatial SVD and then channel pruning, is timed too. Beside it AIMET's own procedure, eval
scores on the same labelled pictures and greedy selection, done by slimrank. Growth is that of the default
call. Tables ``speed``, ``speed-scores`` and ``growth`` in ``benchmarks/results/``.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from typing import Any

import torch

from benchmarks.reference import BOTH, LABELLED, ROOT, RUNS, SCHEMES, both, compressed, one_evaluation, spent
from benchmarks.tables import Row, Value, context, merge_table, read_table, table_path
from benchmarks.tasks.tasks import TASKS, accuracy_columns
from slimrank.capture import count_cost
from slimrank.forward import as_batch

RATIO = 0.5
N_IMAGES = 512
GROWTH_IMAGES = 128
# Times as many blocks, times as many channels, and the seconds after which a size is given up.
SCALES = (
    (1, 1, 600),
    (2, 1, 900),
    (4, 1, 1800),
    (8, 1, 3600),
    (1, 2, 900),
    (1, 4, 1800),
    (1, 8, 5400),
)
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


def _run(*arguments: str, script: str = "one_run", limit: int | None = None) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
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
        "floor_cpu_seconds": round(median("floor_cpu"), 3),
        "compress_cpu_seconds": round(median("compress_cpu"), 3),
        **{f"phase_{phase}": round(median("phases", phase), 2) for phase in PHASES},
        "times_floor": round(median("seconds") / median("floor"), 1),
        "times_floor_cpu": round(median("cpu") / median("floor_cpu"), 1),
        # Of sr.compress over study + plan + apply; 0 where it was not run.
        "compress_over_parts_cpu": round(median("compress_cpu") / median("cpu"), 2),
    }


def speed_rows(network: str, *, reuse: bool, recipe_too: bool = True) -> list[Row]:
    """Slimrank and AIMET on one network, interleaved.

    Args:
        network: key of ``TASKS``.
        reuse: take AIMET's last run, and time one of its evaluations to see that the machine is as it was.
        recipe_too: run AIMET's recipe of both methods as well; on the ResNet-like it takes more than half an
            hour.

    Returns:
        A row for the two SVD methods, and one for the default call.
    """
    arguments = (network, "--images", str(N_IMAGES), "--ratio", str(RATIO))
    ours: dict[str, list[dict[str, Any]]] = {"svd": [], "all": []}

    def run_ours() -> None:
        for methods, runs in ours.items():
            runs.append(_run(*arguments, "--methods", methods, "--compress"))

    run_ours()
    scheme = SCHEMES[network][0]
    if not reuse:
        for run in (scheme, *(("both",) if recipe_too else ())):
            shutil.rmtree(RUNS / f"{network}-{run}", ignore_errors=True)
    results, _ = compressed(network, scheme)
    run_ours()
    recipe = _recipe(network) if recipe_too else {"aimet_both_note": "left out"}
    run_ours()
    now = one_evaluation(network)["seconds"]
    seconds, evaluations = spent(results, RATIO)
    rows = []
    for methods, runs in ours.items():
        summary = _summary(runs)
        faster_than_recipe = (
            round(float(str(recipe["aimet_both_seconds"])) / summary["seconds"], 1)
            if "aimet_both_seconds" in recipe
            else None
        )
        rows.append(
            {
                "network": network,
                "methods": methods,
                "aimet_scheme": scheme,
                "aimet_seconds": round(seconds, 1),
                "aimet_evaluations": evaluations,
                "aimet_evaluation_seconds": round(
                    results["ratios"][0]["seconds_in_evaluations"] / results["ratios"][0]["evaluations"], 2
                ),
                "original_evaluation_seconds": round(now, 2),
                "aimet_run": "kept" if reuse else "in this run",
                "aimet_labelled_images": LABELLED,
                "unlabelled_images": N_IMAGES,
                "times_faster": round(seconds / summary["seconds"], 1),
                **recipe,
                "times_faster_both": faster_than_recipe,
                "runs": len(runs),
                **summary,
            }
        )
    return rows


def _recipe(network: str) -> dict[str, Value]:
    """Columns of AIMET's spatial SVD followed by its channel pruning, or why it fails."""
    if network not in BOTH:
        return {"aimet_both_note": f"fails: {_why_pruning_fails(network)}"}
    done = both(network)
    if done.network is None:
        return {"aimet_both_note": f"fails: {done.error}"}
    task, sample = TASKS[network], as_batch(torch.zeros(1, 1, 32, 32))
    original = task.model()
    share = count_cost(done.network, sample).macs / count_cost(original, sample).macs
    accuracy = accuracy_columns(task.right(original), task.right(done.network))
    return {
        "aimet_both_seconds": round(done.seconds, 1),
        "aimet_both_evaluations": done.evaluations,
        "aimet_both_first_seconds": round(done.first_seconds, 1),
        "aimet_both_second_ratio": done.second_ratio,
        "aimet_both_macs_counted": round(share, 4),
        "aimet_both_points_lost": accuracy["points_lost"],
        "aimet_both_note": None,
    }


def _why_pruning_fails(network: str) -> str:
    """The error of AIMET's channel pruning in the table of ``bench_pruning``, which is made first."""
    rows = [row for row in read_table(table_path("pruning")) if row["way"] == "AIMET"]
    notes = [row["note"] for row in rows if row["network"] == network]
    if not notes or not all(notes):
        raise SystemExit(f"{network}: table 'pruning' does not tell how AIMET fails; run: make bench-pruning")
    return notes[0]


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


def growth_row(depth: int, width: int, limit: int) -> Row:
    """The ResNet-like with random weights, deeper or wider, as called by default.

    Args:
        depth: times as many blocks.
        width: times as many channels.
        limit: seconds after which it is given up.

    Returns:
        One row; without figures where it was given up.
    """
    sizes = ("--images", str(GROWTH_IMAGES), "--depth", str(depth), "--width", str(width))
    row: Row = {"depth": depth, "width": width, "methods": "all", "images": GROWTH_IMAGES}
    try:
        run = _run("scaled", *sizes, "--methods", "all", limit=limit)
    except subprocess.TimeoutExpired:
        return {**row, "note": f"not done in {limit} s"}
    return {**row, "macs": run["macs"], **_summary([run]), "note": None}


def main() -> None:
    """Runs what is asked for, and merges it into the tables."""
    parser = argparse.ArgumentParser(description="Speed beside AIMET, and growth.")
    parser.add_argument("--network", choices=sorted(TASKS), action="append")
    parser.add_argument("--growth", action="store_true", help="only the table of growth")
    parser.add_argument("--size", help="only this size of it: DEPTHxWIDTH, e.g. 1x8")
    parser.add_argument("--reuse", action="store_true", help="time slimrank anew, take AIMET's last run")
    parser.add_argument("--no-recipe", action="store_true", help="leave AIMET's recipe of both methods out")
    parser.add_argument("--no-scores", action="store_true", help="leave AIMET's greedy by slimrank out")
    args = parser.parse_args()
    for name in [] if args.growth else args.network or sorted(TASKS):
        rows = [
            {**row, **context()} for row in speed_rows(name, reuse=args.reuse, recipe_too=not args.no_recipe)
        ]
        print(*rows, sep="\n", flush=True)
        merge_table(table_path("speed"), rows, ("network", "aimet_scheme", "methods"))
        if args.no_scores:
            continue
        scored = [{**score_row(name, row), **context()} for row in rows if row["methods"] == "svd"]
        print(*scored, sep="\n", flush=True)
        merge_table(table_path("speed-scores"), scored, ("network", "method"))
    sizes = [(d, w, limit) for d, w, limit in SCALES if args.size in (None, f"{d}x{w}")]
    for depth, width, limit in sizes if args.growth or not args.network else ():
        now = context()
        row = {**growth_row(depth, width, limit), **now}
        print(row, flush=True)
        merge_table(table_path("growth"), [row], ("depth", "width", "images"))


if __name__ == "__main__":
    main()
