# SPDX-License-Identifier: Apache-2.0
"""Constants that the forward reshapes, end to end; and what the summary says of channels that stay."""

from pathlib import Path

import torch
from torch import Tensor, nn

import slimrank as sr


class _Net(nn.Module):
    def __init__(self, *, is_wired: bool) -> None:
        super().__init__()
        self.is_wired = is_wired
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Conv2d(16, 5, 1)
        self.register_buffer("bias", torch.linspace(-1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.reshape(-1, 16, 4, 4) if self.is_wired else x + self.bias.reshape(1, 16, 1, 1)
        return self.head(self.depthwise(x.relu())).mean((2, 3))


def _study(model: nn.Module, rng: torch.Generator) -> sr.Study:
    return sr.study(model, [torch.randn(16, 3, 6, 6, generator=rng)], effort="fast", progress=False)


def test_a_result_whose_constants_are_reshaped_is_saved_and_loaded(
    rng: torch.Generator, tmp_path: Path
) -> None:
    study = _study(_Net(is_wired=False).eval(), rng)
    assert study.structure.channels.groups["stem"].sizes == (("", "bias.shape"),)
    plan = sr.Plan.manual(study, {"stem": ("channel_pruning", {"keep": 5})})
    result = study.apply(plan)
    assert result.after.macs == plan.after.macs
    assert result.model.bias.shape == (5,)
    x = torch.randn(2, 3, 6, 6, generator=rng)
    result.save(tmp_path / "saved")
    loaded = sr.load(tmp_path / "saved", model=_Net(is_wired=False))
    torch.testing.assert_close(loaded.eval()(x), result.model.eval()(x))


def test_a_depthwise_layer_quotes_what_holds_its_channels(rng: torch.Generator) -> None:
    study = _study(_Net(is_wired=True).eval(), rng)
    (reason,) = (layer.reason for layer in study.layers if layer.name == "depthwise")
    assert reason is not None
    assert reason.startswith(
        "its channels stay: its size is hard-wired: RuntimeError: shape '[-1, 16, 4, 4]'"
    )
    assert "depthwise convolution" not in study.summary()
