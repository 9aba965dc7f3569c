# SPDX-License-Identifier: Apache-2.0
"""A plan with some of its settings changed by hand."""

import os
from collections.abc import Mapping

from slimrank._errors import PlanError
from slimrank.measured import StudyRecord
from slimrank.plan import Plan, SettingLike, are_same_steps, check_structure, edited_plan


def edit_plan(
    record: StudyRecord, plan: Plan, settings: Mapping[str, SettingLike] | str | os.PathLike[str]
) -> Plan:
    """A plan with other settings for some names; ``Study.edit`` says what they may be.

    Args:
        record: of the study.
        plan: of this study; all that is not named stays.
        settings: layer, group or block -> setting, or the path of a file of them.

    Returns:
        A new plan; its ``select`` is "manual".

    Raises:
        SlimrankError: as in ``Study.edit``.
    """
    check_steps(record, plan)
    return edited_plan(record, plan, settings)


def check_steps(record: StudyRecord, plan: Plan) -> None:
    """Refuses a plan whose last step does not start from the model of a study.

    Args:
        record: of the study.
        plan: any.

    Raises:
        PlanError: it does not.
    """
    check_structure(plan, record.structure, step=-1)
    earlier = record.previous.steps if record.previous else ()
    steps_before = plan.steps[:-1]
    if not are_same_steps(steps_before, earlier):
        raise PlanError(
            f"plan: {len(steps_before)} steps come before its last one, and they are not the "
            f"{len(earlier)} that made the model of this study; use "
            "slimrank.apply(model, plan, batches) on the original"
        )
