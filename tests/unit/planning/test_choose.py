# SPDX-License-Identifier: Apache-2.0
import inspect

import slimrank as sr
from slimrank.planning import choose_plan


def test_a_plan_of_a_record_takes_what_a_plan_of_a_study_takes() -> None:
    asked = dict(inspect.signature(sr.Study.plan).parameters)
    known = dict(inspect.signature(choose_plan).parameters)
    # The model belongs to the first, and what works with it is handed to the second.
    for name in ("self", "activation_bytes"):
        asked.pop(name)
    for name in ("record", "within_peak"):
        known.pop(name)
    assert {name: value.default for name, value in known.items()} == {
        name: value.default for name, value in asked.items()
    }
