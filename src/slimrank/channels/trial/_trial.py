# SPDX-License-Identifier: Apache-2.0
"""Trial slimming: which groups can go, and which attributes of the user's modules go with them."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from slimrank.channels._without import freeze
from slimrank.channels.trial._compare import Comparison, Problem
from slimrank.channels.trial._merge import mergeable, merged
from slimrank.channels.trial._size_search import (
    Candidate,
    Hint,
    candidates,
    candidates_in,
    hypotheses,
    idle_norms,
    scope_of,
    totals_of,
)
from slimrank.forward import Batch
from slimrank.records import ChannelMap

# Sets of sizes that are tried for one group at most; each costs a forward or more.
_MAX_TRIALS = 24
# Once a set of sizes passes: how many of them are tried to be left out.
_MAX_REMOVALS = 8
# Sets of sizes with which the model runs but computes something else, before the search for a group ends.
_MAX_RUNNING = 3
# Groups of a kind for which no sizes were found, before further ones of the kind are not searched any more.
_MAX_SEARCHES = 2
# Shares of units that stay lie around a half, and neighbours differ: what fits only because two groups lose
# as much must not pass. Multiples of an irrational number, modulo 1, never repeat.
_SHARES = (0.35, 0.4)
_STEPS = (0.6180339887, 0.4142135624)
# The third turn, in which every second unit stays, without the ends.
_GAPS = 2
# Up to so many units, all but the ends stay in that turn: every second one would be too few.
_FEW = 4
# Of a group of two units, one or the other stays.
_PAIR = 2
# What torch says of a view or reshape to sizes that do not fit.
_MISFIT = "is invalid for input of size"
# Modules that channels of a group pass through, in which sizes are looked for one after another.
_MAX_PASSED = 64
Sizes = tuple[tuple[str, str], ...]


def try_groups(model: nn.Module, sample: Batch, channels: ChannelMap) -> ChannelMap:
    """Slims every group on private copies, and sees whether the model does what the masked one does.

    All groups are tried at once, and halved only where that fails. A group that fails alone is tried with
    attributes of the user's modules set in proportion, as if they were its sizes.

    Args:
        model: any model; not changed.
        sample: one sample, or better two: code that fits one sample only shows itself.
        channels: groups as they were read.

    Returns:
        The map with the sizes that were found. Groups that fail are frozen, with the reason, and what belongs
        to them is left out.
    """
    trial = _GroupTrial(model, sample, channels)
    trial.keep_sound(0, trial.live)
    if trial.merge_failed():
        trial.keep_sound(0, trial.live)
    names = trial.live
    # Then without every second one as well: two groups may fit each other, and nothing else.
    for turn, chosen in ((_GAPS, names[::2]), (_GAPS, names[1::2]), (1, names)):
        trial.keep_sound(turn, chosen)
    trial.size_idle_norms()
    return trial.outcome()


class _GroupTrial:
    """Groups that are tried on one model, with what was learnt so far."""

    def __init__(self, model: nn.Module, sample: Batch, channels: ChannelMap) -> None:
        self._channels = channels
        self._order = {name: index for index, name in enumerate(channels.groups)}
        live = [group for group in channels.groups.values() if group.reason is None]
        single = {group.name: "it is a single unit" for group in live if group.units == 1}
        self._reasons: dict[str, str] = single
        watched = dict.fromkeys(name for group in live for name in group.consumers)
        self._comparison = Comparison(model, sample, tuple(watched))
        self._hints: dict[object, tuple[Hint, ...]] = {}
        self._scaling: set[object] = set()
        self._failed_searches: Counter[object] = Counter()
        self._farthest: Counter[object] = Counter()
        self._kinds: dict[str, object] = {}
        self._differing: set[str] = set()
        self._pair: object = None

    @property
    def live(self) -> list[str]:
        """Groups that have not failed, in order."""
        return [
            name
            for name, group in self._channels.groups.items()
            if group.reason is None and name not in self._reasons
        ]

    def outcome(self) -> ChannelMap:
        """What was found."""
        return freeze(self._channels, self._reasons)

    def keep_sound(self, turn: int, chosen: Iterable[str]) -> None:
        """Freezes the groups that cannot go, alone or together.

        Args:
            turn: which numbers of units stay.
            chosen: groups to slim; the others stay whole.
        """
        live = set(self.live)
        accepted: list[str] = []
        pending = [self._by_kind([name for name in chosen if name in live])]
        while pending:
            part = pending.pop()
            if not part:
                continue
            if self._passes(accepted, part, turn):
                accepted += part
            elif len(part) == 1:
                accepted += self._settled(accepted, part[0], turn)
            else:
                pending += reversed(self._parts(part))

    def merge_failed(self) -> bool:
        """Tries groups that failed alone as one, such as the widths of queries and of values.

        Returns:
            Whether any could be merged.
        """
        done: set[str] = set()
        failed_merges: Counter[object] = Counter()
        failed = [
            group
            for name, group in self._channels.groups.items()
            if name in self._reasons and group.reason is None and group.units > 1
        ]
        for first, second in mergeable(failed):
            if done & {first, second}:
                continue
            pair = (self._kind(first), self._kind(second))
            if failed_merges[pair] >= _MAX_SEARCHES:
                continue
            before, reasons, kinds = self._channels, self._reasons, self._kinds
            self._channels = merged(self._channels, first, second)
            self._reasons = {name: reason for name, reason in reasons.items() if name not in (first, second)}
            self._kinds, self._pair = {}, pair
            if self._settled((), first, 0):
                done |= {first, second}
                continue
            failed_merges[pair] += 1
            # Together they may have come farther, and then this is why neither can go.
            why = self._reasons[first] if first in self._differing else None
            self._channels, self._kinds = before, kinds
            self._reasons = reasons if why is None else {**reasons, first: why, second: why}
        return bool(done)

    def size_idle_norms(self) -> None:
        """Sizes of norms without tensors, which matter to nobody but the warnings of torch."""
        norms = idle_norms(self._comparison.model)
        for name in self.live if norms else ():
            group = self._channels.groups[name]
            totals = totals_of(self._channels, name)
            wanted = {norm: size for norm, size in norms.items() if size in totals}
            kept = self._kept(name, 0)
            if not wanted:
                continue
            seen = self._comparison.channels_into(self._channels, {name: kept}, list(wanted))
            follow = [
                norm for norm, size in wanted.items() if seen.get(norm, 0) * group.units == size * len(kept)
            ]
            self._set_sizes({name: (*group.sizes, *((norm, "num_features") for norm in follow))})

    def _passes(self, accepted: Sequence[str], part: Sequence[str], turn: int) -> bool:
        """Whether groups can go, as they are or with the sizes that groups like them were found to have."""
        if self._problem([*accepted, *part], turn) is None:
            return True
        before = self._channels
        guesses = {name: self._guess(name) for name in part}
        guesses = {name: sizes for name, sizes in guesses.items() if sizes}
        if guesses:
            self._set_sizes(guesses)
        for name in part:
            if self._kind(name) in self._scaling:
                self._channels = self._comparison.with_queries(self._channels, name) or self._channels
        if self._channels is before:
            return False
        if self._problem([*accepted, *part], turn) is None:
            return True
        self._channels = before
        return False

    def _by_kind(self, names: Sequence[str]) -> list[str]:
        """Groups of a kind next to each other: they mostly pass or fail together."""
        first: dict[object, int] = {}
        kinds = {name: self._kind(name) for name in names}
        for index, name in enumerate(names):
            first.setdefault(kinds[name], index)
        return sorted(names, key=lambda name: first[kinds[name]])

    def _parts(self, names: Sequence[str]) -> list[list[str]]:
        """Parts of a list that failed as a whole."""
        kinds = [self._kind(name) for name in names]
        if self._failed_searches[kinds[0]] >= _MAX_SEARCHES and len(set(kinds)) == 1:
            return [[name] for name in names]
        # Between two kinds, the boundary nearest to the middle.
        ends = [index for index in range(1, len(names)) if kinds[index] != kinds[index - 1]]
        middle = min(ends, key=lambda index: abs(2 * index - len(names))) if ends else len(names) // 2
        return [list(names[:middle]), list(names[middle:])]

    def _problem(self, names: Sequence[str], turn: int) -> Problem | None:
        kept = {name: self._kept(name, turn) for name in names}
        return self._comparison.problem(self._channels, kept, is_full=turn == 0)

    def _kept(self, name: str, turn: int) -> tuple[int, ...]:
        """Units that stay in a trial: some at random; or neither the first nor the last, nor two neighbours.

        Code that looks at the place of a channel finds every one at another place then.
        """
        units = self._channels.groups[name].units
        if units == _PAIR:
            return ((self._order[name] + min(turn, 1)) % _PAIR,)
        if turn == _GAPS:
            return tuple(range(1, units - 1, 1 if units <= _FEW else 2))
        counts = []
        for step in _STEPS:
            share = _SHARES[0] + _SHARES[1] * ((self._order[name] + 1) * step % 1)
            counts.append(min(max(round(units * share), 1), units - 1))
        if units > 3:
            # Odd, so that it does not happen to fit a constant of the code.
            counts[0] = min(counts[0] | 1, units - 1)
            counts[1] += (counts[1] == counts[0]) * (1 if counts[1] < units - 1 else -1)
        picks = random.Random(f"{name} {turn}").sample(range(units), counts[turn])
        return tuple(sorted(picks))

    def _set_sizes(self, sizes: Mapping[str, Sizes]) -> None:
        groups = {
            name: replace(group, sizes=sizes[name]) if name in sizes else group
            for name, group in self._channels.groups.items()
        }
        self._channels = replace(self._channels, groups=groups)

    def _kind(self, name: str) -> object:
        """Equal for groups that stand in the same place of blocks of a kind."""
        if name not in self._kinds:
            group = self._channels.groups[name]
            scope = scope_of(self._channels, group)
            holder = scope.holder(self._comparison.model)
            self._kinds[name] = (holder, scope.kin, group.is_inner, name.partition("#")[2])
        return self._kinds[name]

    def _guess(self, name: str) -> Sizes:
        group = self._channels.groups[name]
        if group.sizes or self._kind(name) not in self._hints:
            return ()
        scope = scope_of(self._channels, group)
        wanted = [scope.find(hint) for hint in self._hints[self._kind(name)]]
        existing = {
            (candidate.module, candidate.path)
            for candidate in candidates(self._comparison.model, self._channels, group)
        }
        return tuple(wanted) if existing.issuperset(wanted) else ()

    def _settled(self, accepted: Sequence[str], name: str, turn: int) -> list[str]:
        """The group, if sizes can be found with which it passes; else it is frozen."""
        before = self._channels
        self._set_sizes({name: ()})
        problem = self._alone(name)
        if problem is not None:
            sizes, problem = self._found_sizes(name, problem)
            if problem is not None:
                self._channels = before
                self._reasons[name] = _reason(problem)
                self._differing |= {name} if problem.kind == "differs" else set()
                return []
            self._set_sizes({name: sizes})
        together = self._problem([*accepted, name], turn)
        if together is None:
            return [name]
        self._channels = before
        self._reasons[name] = f"it cannot go together with the groups before it: {together.text}"
        return []

    def _alone(self, name: str) -> Problem | None:
        """What goes wrong with one group; queries are scaled where only that helps."""
        before, problem = self._channels, self._tried_alone(name)
        if problem is None or problem.kind != "differs":
            return problem
        scaling = self._comparison.with_queries(before, name)
        if scaling is None:
            return problem
        self._channels = scaling
        if self._tried_alone(name) is None:
            self._scaling.add(self._kind(name))
            return None
        self._channels = before
        return problem

    def _tried_alone(self, name: str) -> Problem | None:
        # The third turn first: most wrong sizes fail in both, and turn 0 takes longer, since it also trains.
        return self._problem([name], _GAPS) or self._problem([name], 0)

    def _found_sizes(self, name: str, problem: Problem) -> tuple[Sizes, Problem | None]:
        """Sizes with which a group passes; or what is wrong with it, as the trial that came farthest says."""
        group = self._channels.groups[name]
        kind = self._kind(name)
        found = candidates(self._comparison.model, self._channels, group)
        # The same line may have failed before, for groups of modules of this class, alone or in such pairs.
        holder = scope_of(self._channels, group).holder(self._comparison.model)
        line = (holder, group.is_inner, problem.line, self._pair)
        is_hopeless = max(self._failed_searches[kind], self._failed_searches[line]) >= _MAX_SEARCHES
        limit = max(self._farthest[kind], self._farthest[line]) if is_hopeless else _MAX_TRIALS
        running = 0
        for n_tried, chosen in enumerate(hypotheses(found, limit), 1):
            left = self._with_sizes(name, chosen)
            if left is None:
                smallest = self._reduced(name, chosen)
                scope = scope_of(self._channels, group)
                self._hints[kind] = tuple(
                    scope.hint(candidate.module, candidate.path) for candidate in smallest
                )
                return _pairs(smallest), None
            if problem.kind == "raises" and (left.kind != "raises" or left.steps > problem.steps):
                # What is left with the best sizes is what the user can mend.
                problem = left
                self._farthest[kind] = self._farthest[line] = n_tried
            running += left.kind != "raises"
            if running == _MAX_RUNNING:
                # The sizes fit, and the numbers are wrong: other sizes will not mend that.
                break
        if limit and problem.kind == "raises":
            passed = self._where_it_raises(name)
            if passed:
                return _pairs(passed), None
        self._failed_searches.update([kind, line])
        return (), problem

    def _where_it_raises(self, name: str) -> list[Candidate]:
        """Sizes in modules that the channels only pass through: each is found where the forward stops.

        Returns:
            Sizes with which the group passes; none where there are no such ones.
        """
        model, group = self._comparison.model, self._channels.groups[name]
        self._set_sizes({name: ()})
        first = self._problem([name], _GAPS)
        if first is None or first.module is None:
            return []
        paths = [candidate.path for candidate in candidates_in(model, self._channels, group, first.module)]
        # The numbers of one module may be equal by chance: all of them, then each alone.
        for wanted in dict.fromkeys([tuple(paths), *((path,) for path in paths)]):
            chosen: list[Candidate] = []
            problem: Problem | None = first
            seen: set[str] = set()
            while problem is not None and problem.module is not None and len(seen) < _MAX_PASSED:
                further = [
                    candidate
                    for candidate in candidates_in(model, self._channels, group, problem.module)
                    if candidate.path in wanted
                ]
                if problem.module in seen or not further:
                    break
                seen.add(problem.module)
                chosen += further
                self._set_sizes({name: _pairs(chosen)})
                problem = self._problem([name], _GAPS)
            if problem is None and self._with_sizes(name, chosen) is None:
                return chosen
        return []

    def _with_sizes(self, name: str, chosen: Sequence[Candidate]) -> Problem | None:
        self._set_sizes({name: _pairs(chosen)})
        return self._alone(name)

    def _reduced(self, name: str, chosen: Sequence[Candidate]) -> list[Candidate]:
        """The sizes without those that it also works without."""
        smallest = list(chosen)
        for candidate in list(chosen)[:_MAX_REMOVALS]:
            rest = [other for other in smallest if other is not candidate]
            if rest and self._with_sizes(name, rest) is None:
                smallest = rest
        return smallest


def _reason(problem: Problem) -> str:
    if problem.kind == "raises":
        cure = "; flatten there, or give -1 for this size" if _MISFIT in problem.text else ""
        return f"its size is hard-wired: {problem.text}{cure}"
    if problem.kind == "trains":
        return f"it cannot be trained once slimmed: {problem.text}"
    if problem.kind == "blind":
        return f"slimmed and masked model cannot be compared: {problem.text}"
    return f"the code computes with its size: {problem.text}"


def _pairs(chosen: Sequence[Candidate]) -> Sizes:
    return tuple((candidate.module, candidate.path) for candidate in chosen)
