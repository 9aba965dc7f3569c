# SPDX-License-Identifier: Apache-2.0
"""A study of a model that was compressed before: whether the plan that is given made that model."""

from torch import nn

from slimrank._errors import PlanError
from slimrank.methods import is_replacement
from slimrank.plan import Plan
from slimrank.records import Cost, Note


def check_previous(model: nn.Module, previous: Plan, *, has_bias: bool) -> None:
    """Refuses a plan that did not make this model, as far as its modules show.

    Args:
        model: as the caller gave it.
        previous: the plan that is said to have made it.
        has_bias: whether pairs of this study carry a bias even where the layer has none.

    Raises:
        PlanError: it has no step, was made with data where this study has none (or the other way round), or
            a layer is not the pair that it names.
    """
    if not previous.steps:
        raise PlanError("previous: it has no step, so it made no model; leave it out")
    if previous.has_bias != has_bias:
        raise PlanError(
            f"previous: that step was made {'with' if previous.has_bias else 'without'} data and this study "
            "is not, or it was planned with new_bias=False; make both alike"
        )
    modules = dict(model.named_modules())
    replaced = {name for step in previous.steps for name in step.settings}
    for step in previous.steps:
        for name, setting in step.settings.items():
            if not is_replacement(modules, step.structure.layers[name], setting, replaced=replaced):
                raise PlanError(
                    f"previous: it did not make this model: {name!r} is no pair of rank {setting.rank_text}; "
                    "give the plan of the result that the model came from"
                )


def check_previous_cost(before: Cost, previous: Plan) -> None:
    """Refuses a plan that made a model of another size.

    Args:
        before: counted cost of the model to study.
        previous: the plan that is said to have made it.

    Raises:
        PlanError: the params differ.
    """
    if before.params != previous.after.params:
        raise PlanError(
            f"previous: it made a model of {previous.after.params:,} params, and this one has "
            f"{before.params:,}; give the plan of the result that the model came from"
        )


def previous_notes(previous: Plan | None) -> list[Note]:
    """What the user should know of a model that was compressed before; nothing for None."""
    if previous is None:
        return []
    return [
        Note(
            where="study",
            text=f"the model was compressed before, to {previous.keep_ratio('macs'):.4f} of the original's "
            'MACs; relative_to="original" reads budgets as shares of the original',
        )
    ]
