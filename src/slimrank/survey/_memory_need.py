# SPDX-License-Identifier: Apache-2.0
"""What a study and an apply need beside the model, from shapes, and what ``memory=`` leaves for the rest."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from slimrank._errors import OptionError
from slimrank.calibrate import Feed, Likelihood, bytes_in_graph
from slimrank.capture import SKIPPED, Captured
from slimrank.cost import (
    DEFAULT_MEMORY,
    LEAST_ROOM,
    MAX_METRIC_WIDTH,
    SAMPLING,
    MemoryBudgets,
    block_width,
    budgets_within,
    bytes_text,
    fitting_bytes,
    moment_bytes,
    read_bytes,
    row_width,
    working_bytes,
)
from slimrank.fitting import forward_size
from slimrank.measured import Options
from slimrank.records import LayerSpec, replaces_groups

# ``memory=`` as a caller gives it: bytes, a text such as "2GB", or None for the default.
MemoryOption = int | str | None

# Code of torch that is loaded with the first study, and what the allocator keeps: observed.
_CODE = 200_000_000
_FLOAT32, _FLOAT64 = 4, 8
# Matrices of a layer's moments that are alive while the order of its channels is found: observed.
_MATRICES_OF_ORDER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory that some part of a run takes and that cannot be cut.

    Attributes:
        what: the part, for messages.
        n_bytes: all that is held then, beside the caller's model.
        cure: what makes it smaller.
    """

    what: str
    n_bytes: int
    cure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """What is known before anything is measured, and tells memory.

    Attributes:
        layers: that are measured or fitted.
        feed: the samples.
        model_bytes: of the model's parameters.
        graph_elements: numbers that the layer outputs of one sample hold.
        paused: memory of one sample while forwards are paused at a layer, by its name.
        output_bytes: reference outputs that are held.
        gradient_outputs: outputs of every layer whose gradients are summed; empty where none are.
        has_data: False where only weights are used.
    """

    layers: Sequence[LayerSpec]
    feed: Feed
    model_bytes: int
    graph_elements: int
    paused: Mapping[str, int]
    output_bytes: int
    gradient_outputs: Mapping[str, int]
    has_data: bool

    @property
    def held(self) -> int:
        """What is held all the time: a copy of the model, gradients, references, code."""
        grams = sum(_FLOAT32 * _metric_size(width) for width in self.gradient_outputs.values())
        return _CODE + self.model_bytes + grams + self.output_bytes

    @property
    def held_out_bytes(self) -> int:
        """Layer outputs of all held-out samples."""
        return _FLOAT32 * self.graph_elements * len(self.feed.held_out)

    @property
    def n_fit(self) -> int:
        """Number of samples that fits use."""
        return len(self.feed.fit)

    def of_layer(self, spec: LayerSpec) -> Need:
        """What one layer needs while it is measured or fitted; a fit holds a second copy of the model."""
        needed = working_bytes(spec, self.n_fit)
        if self.has_data:
            measured = moment_bytes(spec, self.n_fit) + needed
            fitted = self.model_bytes + self._alone(spec)
            needed = max(measured, fitted)
        cure = "leave it alone with skip=, or give fewer or smaller samples"
        return Need(what=f"layer {spec.name!r}", n_bytes=self.held + needed, cure=cure)

    def of_group(self, name: str, readers: Iterable[LayerSpec]) -> Need:
        """What one group of channels needs while it is measured: its readers all at once."""
        needed = sum(
            moment_bytes(spec, self.n_fit)
            + min(
                _MATRICES_OF_ORDER * _FLOAT64 * row_width(spec) * block_width(spec),
                working_bytes(spec, self.n_fit),
            )
            for spec in readers
        )
        cure = f"leave it alone with skip={name.partition('#')[0]!r}, or give fewer samples"
        return Need(what=f"channel group {name!r}", n_bytes=self.held + needed, cure=cure)

    def of_gradients(self) -> Need:
        """What the backward passes need."""
        sums = sum((_FLOAT64 - _FLOAT32) * _metric_size(width) for width in self.gradient_outputs.values())
        widest = max(map(_metric_size, self.gradient_outputs.values()), default=0)
        size = min(max(self.feed.micro_size, 1), self.n_fit)
        graph = size * bytes_in_graph(self.graph_elements) if self.gradient_outputs else 0
        largest = max(self.paused, key=lambda name: self.paused[name], default="")
        what = f"a backward pass over {size} samples (most is alive at {largest!r})"
        # A float32 and a float64 product beside the sums.
        n_bytes = self.held + sums + graph + (_FLOAT32 + _FLOAT64) * widest
        return Need(what=what, n_bytes=n_bytes, cure="give smaller samples, or pass fisher=False")

    def of_layers(self) -> list[Need]:
        """What each layer needs, and the backward passes."""
        return [*(self.of_layer(spec) for spec in self.layers), self.of_gradients()]

    def budgets(self, memory: int | None, others: Sequence[Need] = ()) -> MemoryBudgets:
        """What is left for all that can be cut.

        Args:
            memory: bytes beside the model in all; None for the default.
            others: needs beside those of layers, such as those of groups.
        """
        needs = [*(self.of_layer(spec) for spec in self.layers), *others]
        taken = max((need.n_bytes for need in needs), default=self.held)
        n_bytes = max(DEFAULT_MEMORY, taken + LEAST_ROOM) if memory is None else memory
        # Where a layer alone needs more than all, forwards pause beside the others all the same.
        alone = max((self._alone(spec) for spec in self.layers), default=0)
        fits = max(n_bytes - self.held - self.model_bytes, alone)
        return budgets_within(max(0, n_bytes - taken), fits=fits)

    def _alone(self, spec: LayerSpec) -> int:
        """Memory of a layer's fit and of one forward in both networks."""
        n_samples = min(max(1, forward_size(self.feed)), self.feed.n_samples)
        return n_samples * self.paused.get(spec.name, 0) + fitting_bytes(spec, self.n_fit)


def _metric_size(width: int) -> int:
    return width**2 if width <= MAX_METRIC_WIDTH else width


def needs_of(
    captured: Captured,
    feed: Feed,
    likelihood: Likelihood,
    options: Options,
    names: Collection[str] | None,
    *,
    paused: Mapping[str, int],
) -> MemoryNeeds:
    """What a model and its data need.

    Args:
        captured: layers and costs.
        feed: the samples.
        likelihood: how outputs are read.
        options: of the study.
        names: layers that will be fitted; None for all that a method replaces.
        paused: memory of one sample while forwards are paused at a layer, by its name.
    """
    slims = any(map(replaces_groups, options.methods))

    def is_used(spec: LayerSpec) -> bool:
        if names is not None:
            return spec.name in names
        # Which layers read channels that can go is not known yet.
        return bool(spec.methods) or (slims and spec.groups == 1 and spec.reason != SKIPPED)

    layers = [spec for spec in captured.layers if spec.has_matrix and spec.calls and is_used(spec)]
    per_sample = _FLOAT32 * sum(prod(output.shape) for output in likelihood.outputs.values())
    has_gradients = options.fisher and not options.data_free
    return MemoryNeeds(
        layers=layers,
        feed=feed,
        model_bytes=captured.before.bytes,
        graph_elements=captured.output_elements,
        paused=paused,
        output_bytes=min(SAMPLING.outputs, per_sample * len(feed.held_out)),
        gradient_outputs={spec.name: spec.n_outputs for spec in layers} if has_gradients else {},
        has_data=not options.data_free,
    )


def memory_of(memory: object) -> int | None:
    """``memory=`` in bytes; None for the default.

    Args:
        memory: as a caller gave it.

    Raises:
        OptionError: no number of bytes.
    """
    return None if memory is None else read_bytes(memory, "memory")


def check_needs(needs: Iterable[Need], memory: int | None) -> None:
    """Refuses a ``memory=`` that cannot hold what cannot be cut.

    Args:
        needs: of the run.
        memory: bytes beside the model; None for the default, above which a run goes where it needs more.

    Raises:
        OptionError: the message names what needs most, and how much.
    """
    largest = max(needs, key=lambda need: need.n_bytes, default=None)
    if memory is not None and largest is not None and largest.n_bytes > memory:
        raise OptionError(
            f"memory={bytes_text(memory)} is too little: {largest.what} needs about "
            f"{bytes_text(largest.n_bytes)} beside the model (estimated); raise memory=, {largest.cure}"
        )
