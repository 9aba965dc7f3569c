# SPDX-License-Identifier: Apache-2.0
"""Second moments of layer inputs, over the fit samples."""

from collections.abc import Callable, Mapping
from math import ceil

import torch
from torch import Tensor, nn

from slimrank.calibrate._feed import Feed
from slimrank.calibrate._inner_states import inner_states
from slimrank.calibrate._rows import draw_positions, input_rows, output_rows_at, token_mask
from slimrank.cost import keeps_rows, row_cap, row_width
from slimrank.forward import run, tap_layers
from slimrank.linalg import Moments, MomentSums
from slimrank.records import LayerSpec


def layer_seed(seed: int, layer_index: int, batch_number: int, call: int) -> int:
    """Seed of one draw of positions: the same rows for the same layer, batch and call, whatever else runs."""
    # The hash of a tuple of integers is the same in every process; with texts in it, it would not be.
    return hash((seed, layer_index, batch_number, call)) & 0x7FFF_FFFF_FFFF_FFFF


def rows_wanted(spec: LayerSpec, share: float) -> int:
    """Rows to take from one call of a layer, given the share of all fit samples in the micro-batch."""
    return max(1, ceil(row_cap(spec) * share / max(1, len(spec.calls))))


def states_of(name: str, layer: int) -> str:
    """Under which name moments of what a layer of a recurrent module gives stand among those of inputs."""
    return f"{name} (states of layer {layer})"


def states_name(name: str) -> str:
    """Of which module a name of ``states_of`` tells."""
    return name.partition(" (states of layer ")[0]


def collect_moments(
    model: nn.Module,
    feed: Feed,
    specs: Mapping[int, LayerSpec],
    *,
    seed: int,
    advance: Callable[[int], None],
) -> Mapping[str, Moments]:
    """Second moments of the inputs of layers, over the fit samples.

    Args:
        model: a private copy in eval mode.
        feed: the samples.
        specs: layers by their index in the study.
        seed: of the rows drawn.
        advance: called with the number of samples of every micro-batch that is done.

    Returns:
        Moments by layer name; layers that were never called are left out. Of a recurrent one also those of
        what each of its layers gives, and reads itself at the next step (``states_of``).
    """
    sums = {
        spec.name: MomentSums(row_width(spec), keep_rows=keeps_rows(spec), n_groups=spec.groups)
        for spec in specs.values()
    }
    index_of = {spec.name: index for index, spec in specs.items()}
    by_name = {spec.name: spec for spec in specs.values()}
    n_fit = len(feed.fit)
    for number, batch in enumerate(feed.stream(feed.fit)):
        mask = token_mask(batch)
        size = batch.n_samples

        def add_rows(
            name: str,
            call: int,
            x: Tensor,
            y: Tensor,
            number: int = number,
            size: int = size,
            mask: Tensor | None = mask,
        ) -> None:
            spec = by_name[name]
            generator = torch.Generator().manual_seed(layer_seed(seed, index_of[name], number, call))
            positions = draw_positions(spec, x, rows_wanted(spec, size / n_fit), generator, mask)
            sums[name].add(input_rows(model.get_submodule(name), spec, x, positions))
            states = inner_states(model.get_submodule(name), x, y) if spec.is_recurrent else []
            for layer, state in enumerate(states):
                known = sums.setdefault(states_of(name, layer), MomentSums(state.shape[-1]))
                known.add(output_rows_at(spec, state, positions))

        with torch.no_grad(), tap_layers(model, list(by_name), add_rows):
            run(model, batch)
        advance(size)
    return {name: moment_sums.moments() for name, moment_sums in sums.items() if moment_sums.n_rows}
