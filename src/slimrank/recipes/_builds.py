# SPDX-License-Identifier: Apache-2.0
"""How far a call is that builds one model after another."""

import time

from slimrank._progress import Expected, Overall
from slimrank._study import Study, with_overall
from slimrank.fitting import layer_tasks
from slimrank.plan import Plan

# Of the time of a model: fits, and what measures it then.
_SHARES = {"apply": 0.8, "verify": 0.2}
# Share of the time of a study that a model is expected to take before one was built.
_OF_STUDY = 0.3


class Builds:
    """Models that a call builds and measures, how many it will be known roughly.

    Attributes:
        study: whose ``apply`` tells how far the whole call is.

    Args:
        study: of the model.
        name: of the call.
    """

    def __init__(self, study: Study, name: str) -> None:
        self._overall = Overall(name, {})
        self.study = with_overall(study, self._overall)
        self._seconds = max(_OF_STUDY * sum(study.seconds.values()), 1.0)
        self._start = time.perf_counter()
        self._n_done = -1

    def begin(self, plan: Plan, n_left: int) -> None:
        """Tells that a model will be built.

        Args:
            plan: of it.
            n_left: how many will be from now on, this one included.
        """
        self._n_done += 1
        done = self._overall.steps
        if self._n_done:
            self._seconds = (time.perf_counter() - self._start) / self._n_done
        steps = {"apply": len(layer_tasks(plan)), "verify": 1}
        self._overall.expect(
            {
                phase: Expected(
                    seconds=share * self._seconds * (self._n_done + n_left),
                    steps=done.get(phase, 0) + n_left * steps[phase],
                )
                for phase, share in _SHARES.items()
            }
        )
