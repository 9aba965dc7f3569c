# SPDX-License-Identifier: Apache-2.0
"""Memory of channel groups, which are known only once the model was traced, and what cutting work costs."""

from dataclasses import replace

from slimrank.calibrate import count_passes, fit_together
from slimrank.cost import DEFAULT_MEMORY, MemoryBudgets, bytes_text
from slimrank.records import ChannelMap, LayerSpec, Note
from slimrank.survey._groups import GroupSurvey
from slimrank.survey._memory_need import Need, check_needs
from slimrank.survey._session import Session


def with_room_for_groups(session: Session, channels: ChannelMap) -> Session:
    """The session, its budgets such that the largest group fits as well.

    Args:
        session: model, data and options.
        channels: groups and blocks of the model.

    Raises:
        OptionError: ``memory=`` was given and cannot hold the largest group.
    """
    if session.options.data_free:
        return session
    layers = {spec.name: spec for spec in session.captured.layers}
    needs = group_needs(GroupSurvey(session=session, layers=layers, channels=channels, grams={}))
    check_needs(needs, session.memory)
    return replace(session, budgets=session.needs.budgets(session.memory, needs))


def pass_notes(survey: GroupSurvey) -> list[Note]:
    """A note where ``memory=`` makes more passes over the samples than the default; none else.

    It tells of a whole study, whatever an earlier run left.
    """
    session = survey.session
    if session.options.data_free or session.memory is None or session.memory >= DEFAULT_MEMORY:
        return []
    usual = session.needs.budgets(None, group_needs(survey))
    n_usual, n_passes = count_passes_of(survey, usual), count_passes_of(survey, session.budgets)
    if n_passes <= n_usual:
        return []
    text = (
        f"{n_passes} passes over the samples for second moments instead of {n_usual}, to stay below "
        f"{bytes_text(session.memory)}"
    )
    return [Note(where="memory", text=text)]


def group_needs(survey: GroupSurvey) -> list[Need]:
    """What each group needs that can be slimmed."""
    needs = survey.session.needs
    return [
        needs.of_group(group.name, survey.layers_needed(group).values())
        for group in survey.slimmable.values()
    ]


def count_passes_of(survey: GroupSurvey, budgets: MemoryBudgets) -> int:
    """Passes over the samples that a whole study makes for second moments."""
    layers = {index: spec for index, spec in enumerate(survey.layers.values()) if spec.methods}
    groups = {index: survey.layers_needed(group) for index, group in survey.slimmable.items()}
    together: dict[int, LayerSpec] = dict(layers)
    for needed in groups.values():
        together |= needed
    if fit_together(together.values(), budgets.layer_moments):
        return 1
    alone = {index: {index: spec} for index, spec in layers.items()}
    return count_passes(alone, budgets.layer_moments) + count_passes(groups, budgets.group_moments)
