# SPDX-License-Identifier: Apache-2.0
"""Which layers the outputs depend on, where no gradient tells."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank._errors import BatchesError
from slimrank.forward import (
    Batch,
    OutputChoice,
    fixed_seed_without_warnings,
    pick_outputs,
    run,
    tap_layers,
)


def layers_that_count(
    model: nn.Module, batch: Batch, names: Sequence[str], outputs: OutputChoice
) -> frozenset[str]:
    """The layers without whose outputs the chosen outputs would be others.

    Args:
        model: a private copy in eval mode.
        batch: some samples.
        names: of layers, each of which costs a forward.
        outputs: which outputs matter.

    Returns:
        Names of those whose outputs, when noise as large as they are is added, change any output.
    """

    def outputs_with_noise_in(name: str) -> Mapping[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def disturb(_name: str, _call: int, _x: Tensor, y: Tensor) -> Tensor:
            noise = torch.randn(y.shape, generator=generator, device="cpu").to(y)
            return y + noise * y.abs().max() if y.numel() else y

        noisy = [name] if name else []
        with torch.no_grad(), fixed_seed_without_warnings(model), tap_layers(model, noisy, disturb):
            return pick_outputs(run(model, batch), outputs)

    plain = outputs_with_noise_in("")
    counting = set()
    for name in names:
        try:
            noisy = outputs_with_noise_in(name)
        except BatchesError:
            # Code that checks its values: it depends on them.
            counting.add(name)
            continue
        if not all(torch.equal(plain[key], noisy[key]) for key in plain):
            counting.add(name)
    return frozenset(counting)
