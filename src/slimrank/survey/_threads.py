# SPDX-License-Identifier: Apache-2.0
"""Whether other processes on the machine will slow a study down by far more than their share."""

import os

import torch

# What keeps OpenMP's threads from spinning while they wait; read by it when torch is imported.
_POLICY, _QUIET = "OMP_WAIT_POLICY", "PASSIVE"


def busy_text() -> str | None:
    """What to tell the user of other work on the machine.

    Returns:
        A sentence; None where there is nothing to tell.
    """
    if not hasattr(os, "getloadavg"):  # Windows
        return None
    return crowded_text(
        load=os.getloadavg()[0],
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        policy=os.environ.get(_POLICY, ""),
    )


def crowded_text(*, load: float, cores: int, threads: int, policy: str) -> str | None:
    """Threads that spin while they wait for one which has no core take the core from it.

    Args:
        load: processes that run or want to, on average of the last minute.
        cores: of the machine.
        threads: of torch.
        policy: OpenMP's, as the environment has it.

    Returns:
        A sentence; None where each thread can have a core, or waits without spinning.
    """
    if threads < 2 or load + threads <= cores + 1 or policy.upper() == _QUIET:
        return None
    return (
        f"the machine has had about {load:.0f} busy threads on {cores} cores, and torch's {threads} threads "
        f"spin while they wait, which can make a study several times slower: set {_POLICY}={_QUIET} before "
        "Python starts (the command line does), or call torch.set_num_threads(1)"
    )
