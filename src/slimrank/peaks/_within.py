# SPDX-License-Identifier: Apache-2.0
"""Plans whose activations stay within a peak, counted."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from slimrank._errors import BudgetError
from slimrank.capture import Place
from slimrank.forward import outside_inference_mode
from slimrank.peaks._profile import PeakProfile, count_peak
from slimrank.plan import Plan
from slimrank.records import PeakPoint

# Places that become budgets in one round, at most: each makes the search larger, and most are mended with
# the worst ones.
_NEW_PLACES = 2
# Plans that are chosen and counted, at most. Networks of the tests needed up to 9.
_MAX_ROUNDS = 40
# Activations named in a message: the largest.
_MAX_NAMED = 3

_Rounding = TypeVar("_Rounding")


@outside_inference_mode
def plan_within_peak(
    profile: PeakProfile,
    limit: int,
    selected: Callable[[Sequence[PeakPoint], int], tuple[Plan, _Rounding]],
    lowest_at: Callable[[PeakPoint], float],
    *,
    text: str,
    hint: str = "",
) -> tuple[Plan, _Rounding, int]:
    """The plan of least damage whose peak of activations, counted, is within a limit.

    The peak is the most of many places, and each of them is a budget as others are. Only a few are ever near
    the limit: the worst places of a plan become budgets, and it is chosen again, until no place holds more.

    Args:
        profile: of the network.
        limit: bytes.
        selected: chooses a plan in which each of these places holds at most so many bytes.
        lowest_at: share of the peak that a place can go down to, whatever the damage.
        text: of the budget, for messages.
        hint: ends the message of a limit out of reach.

    Returns:
        The plan, what its ranks are multiples of, and its peak.

    Raises:
        BudgetError: the limit is out of reach; the message names the floor, the place and what lives there.
    """
    points: dict[Place, PeakPoint] = {}
    most = limit
    whole = {place: alive.bytes for place, alive in profile.whole.items()}
    # One is needed as a budget, also where it leaves all free.
    for place in _worst(whole, limit) or [max(whole, key=lambda place: whole[place])]:
        points[place] = profile.point(place)
    for _ in range(_MAX_ROUNDS):
        try:
            plan, rounding = selected(tuple(points.values()), most)
        except BudgetError as error:
            _refuse(profile, points, most, lowest_at, text, hint, error)
            raise
        step = plan.steps[-1]
        counted = count_peak(profile.model, step, profile.sample, has_bias=plan.has_bias)
        if counted <= limit:
            return plan, rounding, counted
        alive = {place: found.bytes for place, found in profile.alive_with(step).items()}
        worst = _worst(alive, limit)
        if not worst:
            # Torch ran other operations than where modules are watched.
            most = most * limit // counted
        for place in worst:
            point = points.get(place) or profile.point(place)
            predicted = point.bytes_left(step.settings, step.groups, step.dropped)
            # What narrows two sizes at once, or moves the worst operation, is no straight line.
            more = (
                alive[place] - predicted
                if place not in points
                else max(alive[place] - predicted, alive[place] - most)
            )
            points[place] = point.raised(max(more, 0))
    raise BudgetError(
        f"budget: {text} was not met by {_MAX_ROUNDS} plans, each for less than the last: the one before had "
        f"{counted:_} bytes; raise it"
    )


def _worst(alive: Mapping[Place, int], limit: int) -> list[Place]:
    """The places that hold most, of those above the limit."""
    over = [place for place, n_bytes in alive.items() if n_bytes > limit]
    return sorted(over, key=lambda place: -alive[place])[:_NEW_PLACES]


def _refuse(
    profile: PeakProfile,
    points: Mapping[Place, PeakPoint],
    most: int,
    lowest_at: Callable[[PeakPoint], float],
    text: str,
    hint: str,
    cause: BudgetError,
) -> None:
    """Raises what tells more, where one of the places is what cannot be met."""
    lowest = {place: lowest_at(point) * point.peak for place, point in points.items()}
    worst = max(lowest, key=lambda place: lowest[place], default=None)
    if worst is None or lowest[worst] <= most:
        return
    floor, alive = round(lowest[worst]), profile.whole.get(worst)
    made = {} if alive is None else alive.made
    largest = sorted(made, key=lambda place: -made[place])[:_MAX_NAMED]
    named = ", ".join(f"{made[place]:_} of {_made_at(place)}" for place in largest)
    raise BudgetError(
        f"budget: {text} cannot be met; the smallest reachable is about activation_bytes={floor:_} "
        f"({floor / profile.peak:.4f} of {profile.peak:_}). What holds it up is {_where(worst)}: of the "
        f"model as it stands, {0 if alive is None else alive.bytes:_} bytes are alive there, {named}. Raise "
        "the budget, allow more (channel pruning of the layers that make these, fewer layers in skip, a "
        f"smaller multiple_of), or give the model smaller inputs{hint}"
    ) from cause


def _where(place: Place) -> str:
    if not place.module:
        return "what runs before the first layer"
    return f"the call of {place.module!r}" if place.is_inside else f"what follows {place.module!r}"


def _made_at(place: Place) -> str:
    if not place.module:
        return "the inputs and what is made before the first layer"
    return f"the outputs of {place.module!r}" if place.is_inside else f"what follows {place.module!r}"
