# SPDX-License-Identifier: Apache-2.0
"""A score run that is killed loses the evaluation in flight and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from slimrank.scores import Scores

# One process studies; its children score, are killed at random moments, and go on where the last one was.
SCRIPT = """
import os, random, signal, sys, time
import nets
import slimrank as sr
from slimrank import measure_scores
from slimrank.scores import Scores

x = torch.cat(nets.noise(1, 8, 8, seed=3))
study = sr.study(nets.cnn(), nets.noise(1, 8, 8), progress=False)
log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def score(model):
    os.write(log, b".")
    time.sleep(0.02)
    with torch.no_grad():
        return float(model(x).square().sum())

def measure(path):
    return measure_scores(study, score, candidates=6, path=path, progress=False)

draw = random.Random(SEED)
kills = 0
while kills < KILLS:
    child = os.fork()
    if child == 0:
        measure("killed.json")
        os._exit(0)
    time.sleep(draw.uniform(0.02, 0.1))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
    kills += 1
    if os.path.exists("killed.json"):
        Scores.load("killed.json")
measure("killed.json")
evaluated = os.stat("log").st_size
measure("whole.json")
print(kills, evaluated, os.stat("log").st_size - evaluated)
"""


@pytest.mark.slow
def test_kills_at_random_moments(python: Callable[..., object], tmp_path: Path) -> None:
    kills = 5
    done = python(SCRIPT.replace("SEED", "0").replace("KILLS", str(kills)))
    killed_runs, evaluated, needed = map(int, done.stdout.split())  # type: ignore[attr-defined]
    assert killed_runs == kills
    killed, whole = Scores.load(tmp_path / "killed.json"), Scores.load(tmp_path / "whole.json")
    assert killed == whole
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert whole.groups
    tables = (*whole.entries.values(), *whole.groups.values())
    assert needed == 1 + sum(len(entries) for entries in tables)
    assert needed <= evaluated <= needed + kills
