# SPDX-License-Identifier: Apache-2.0
"""Does a score run that is killed at random moments lose anything but the evaluation in flight?

The bundled network, 300 labelled images, three candidates. A child process scores and is killed (SIGKILL)
at 20 random moments; the next one goes on with its file. The table must equal that of a run that nobody
killed, and no more evaluations may be made than those needed and one for each kill. One row, added to
``benchmarks/results/kill-cpu-torch<version>.csv`` with commit and date.
"""

import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import slimrank as sr
from benchmarks.tables import FACTORS, Row, context, merge_table, table_path
from slimrank import demo

KILLS, SEED, N_IMAGES = 20, 0, 300
CANDIDATES = (0.25, 0.5, 0.75)


def _is_over(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> None:
    """Runs the row and adds it to the table."""
    # Threads of torch do not live on in a child.
    torch.set_num_threads(1)
    images, labels = (torch.cat(parts)[:N_IMAGES] for parts in zip(*demo.test_batches(), strict=True))
    study = sr.study(demo.build(), demo.calibration_batches(), methods=FACTORS, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def accuracy(model: nn.Module) -> float:
            os.write(log, b".")
            with torch.no_grad():
                return float((model(images).argmax(1) == labels).float().mean())

        def evaluations() -> int:
            return (Path(folder) / "log").stat().st_size

        def measure(name: str) -> sr.Scores:
            return sr.measure_scores(
                study, accuracy, candidates=CANDIDATES, path=Path(folder) / name, progress=False
            )

        start = time.perf_counter()
        whole = measure("whole.json")
        seconds, needed = time.perf_counter() - start, evaluations()
        print(f"{needed} evaluations in {seconds:.1f} s, not killed", flush=True)
        draw = random.Random(SEED)
        kills = 0
        for _ in range(KILLS):
            child = os.fork()
            if child == 0:
                measure("killed.json")
                os._exit(0)
            # So many evaluations later, and anywhere within the next one: kills hit all of the run, and
            # what goes before the first evaluation as well as evaluations and writes.
            goal = evaluations() + draw.randint(0, 2 * needed // KILLS - 2)
            while evaluations() < goal and not _is_over(child):
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 2) * seconds / needed)
            os.kill(child, signal.SIGKILL)
            if os.waitpid(child, 0)[1] != signal.SIGKILL:
                break
            kills += 1
            print(f"kill {kills}: {evaluations() - needed} evaluations so far", flush=True)
        killed = measure("killed.json")
        made = evaluations() - needed
    row: Row = {
        "kills": kills,
        "evaluations_needed": needed,
        "evaluations_made": made,
        "evaluations_lost": made - needed,
        "table_is_the_same": str(killed == whole),
        "seconds_not_killed": round(seconds, 1),
        **context(),
    }
    merge_table(table_path("kill"), [row], ("date", "commit"))
    print(row)
    if killed != whole or made > needed + kills or kills < KILLS:
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()
