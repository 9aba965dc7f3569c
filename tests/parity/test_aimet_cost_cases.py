# SPDX-License-Identifier: Apache-2.0
"""Networks of which AIMET 2.x reports a wrong ratio: what slimrank reports is what the built model counts.

Every case states the ratio that AIMET's formulas give, as seen in a run of it, to show that this is its case.
The count to compare with is torch's own, attention as plain products; it shares no formula with slimrank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import slimrank as sr
from slimrank.records import METRICS

_Settings = Mapping[str, tuple[str, float | Mapping[str, int | float | str]]]


@dataclass(frozen=True)
class Ratios:
    """Of one plan: reported by it, counted by slimrank on what it built, and counted by torch."""

    plan: sr.Plan
    reported: float
    truth: float


def _counted(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def _stored(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def _check(model: nn.Module, x: Tensor, *wishes: _Settings | float) -> list[Ratios]:
    """Plans and builds in both ways; whatever is reported must be what the built models count."""
    model.eval()
    study = sr.study(model, [x], data_free=True, progress=False)
    before = (_counted(model, x[:1]), *_stored(model))
    assert (study.before.macs, study.before.params, study.before.bytes) == before
    outside = study.before.macs - sum(spec.macs for spec in study.layers)
    found = []
    for wish in wishes:
        plan = study.plan(macs=wish) if isinstance(wish, float) else sr.Plan.manual(study, wish)
        for result in (study.apply(plan), sr.apply(model, plan, progress=False)):
            built = result.model.eval()
            after = (_counted(built, x[:1]), *_stored(built))
            for metric, old, new in zip(METRICS, before, after, strict=True):
                assert plan.keep_ratio(metric) == pytest.approx(new / old, abs=1e-6)
                assert result.keep_ratio(metric) == pytest.approx(new / old, abs=1e-6)
            assert outside + sum(layer.after.macs for layer in result.layers) == after[0]
        found.append(Ratios(plan=plan, reported=plan.keep_ratio("macs"), truth=after[0] / before[0]))
    return found


def test_linear_with_tokens_under_weight_svd(rng: torch.Generator) -> None:
    # The MLP of ViT-tiny over 197 tokens. AIMET, asked for 0.5, counts tokens after but not before the split,
    # falls to rank 1 and reports 0.0065.
    assert f"{1 * (192 + 768) / (192 * 768):.4f}" == "0.0065"
    model = nn.Sequential(nn.Linear(192, 768))
    (found,) = _check(model, torch.randn(2, 197, 192, generator=rng), {"0": ("weight_svd", 0.5)})
    assert found.plan.settings["0"].rank == 76
    assert found.reported == pytest.approx(76 * (192 + 768) / (192 * 768), abs=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 5])
def test_ratio_of_a_linear_does_not_depend_on_tokens(n_tokens: int, rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))
    x = torch.randn(2, n_tokens, 24, generator=rng)
    (found,) = _check(model, x, {"0": ("weight_svd", {"rank": 8}), "2": ("weight_svd", {"rank": 4})})
    assert found.truth == pytest.approx(12 * 120 / (2 * 24 * 96), abs=1e-6)


def test_weight_svd_of_a_strided_convolution(rng: torch.Generator) -> None:
    # The 1x1 comes first and works on the map before the stride; AIMET's statistics take the one after it.
    c_in, c_out, rank = 32, 64, 13
    assert f"{rank * (c_in + 9 * c_out) / (9 * c_in * c_out):.3f}" == "0.429"
    model = nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1))
    x = torch.randn(2, c_in, 16, 16, generator=rng)
    (found,) = _check(model, x, {"0": ("weight_svd", {"ratio": 0.5, "form": "1x1_kxk"})})
    assert found.plan.settings["0"].rank == rank
    assert found.reported == pytest.approx(rank * (4 * c_in + 9 * c_out) / (9 * c_in * c_out), abs=1e-6)
    assert f"{found.truth:.3f}" == "0.497"


@pytest.mark.parametrize("stride", [2, (1, 3)], ids=str)
def test_every_form_of_strided_convolutions(stride: int | tuple[int, int], rng: torch.Generator) -> None:
    model = nn.Sequential(
        nn.Conv2d(6, 16, 3, stride=stride, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 20, (3, 5), stride=stride),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 7),
    )
    forms = {"1x1_kxk": "weight_svd", "kxk_1x1": "weight_svd", "v_h": "spatial_svd", "h_v": "spatial_svd"}
    wishes = [
        {name: (method, {"rank": 3, "form": form}) for name in ("0", "2")} for form, method in forms.items()
    ]
    found = _check(model, torch.randn(2, 6, 31, 27, generator=rng), *wishes)
    assert len({one.truth for one in found}) == len(forms)


@pytest.mark.parametrize(
    ("kernel", "size", "rank", "aimet", "truth"),
    [(7, 16, 74, "0.496", "0.595"), (5, 14, 53, "0.497", "0.563")],
    ids=["k7 p0", "k5 p0"],
)
def test_spatial_svd_of_a_valid_convolution(
    kernel: int, size: int, rank: int, aimet: str, truth: str, rng: torch.Generator
) -> None:
    # The map between the factors keeps the full input width; AIMET takes the output's, times the stride.
    c_in, c_out = 32, 64
    assert f"{rank * kernel * (c_in + c_out) / (c_in * c_out * kernel**2):.3f}" == aimet
    model = nn.Sequential(nn.Conv2d(c_in, c_out, kernel))
    x = torch.randn(2, c_in, size, size, generator=rng)
    by_rank, by_ratio = _check(
        model, x, {"0": ("spatial_svd", {"rank": rank, "form": "v_h"})}, {"0": ("spatial_svd", 0.5)}
    )
    wide = size / (size - kernel + 1)
    assert by_rank.reported == pytest.approx(rank * (c_in * wide + c_out) / (c_in * c_out * kernel), abs=1e-6)
    assert f"{by_rank.truth:.3f}" == truth
    # Asked for a ratio, slimrank takes a rank that keeps it.
    assert 0.48 < by_ratio.truth <= 0.5


class _Twice(nn.Module):
    """A layer called twice, at one size or at two, and one of the same shape called once."""

    def __init__(self, *, shrink: bool) -> None:
        super().__init__()
        self.shared, self.own = nn.Conv2d(20, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
        self.shrink = shrink

    def forward(self, x: Tensor) -> Tensor:
        """(N, 20, H, W) to the same, or to half of it."""
        x = self.own(self.shared(x).relu()).relu()
        return self.shared(functional.avg_pool2d(x, 2) if self.shrink else x)


def test_module_called_twice(rng: torch.Generator) -> None:
    # One layer's half is 0.750 where it counts once, 0.667 where both of its calls count.
    x = torch.randn(2, 20, 8, 8, generator=rng)
    (found,) = _check(_Twice(shrink=False), x, {"shared": ("weight_svd", {"rank": 9})})
    assert found.reported == found.truth == pytest.approx(2 / 3, abs=1e-6)


def test_module_called_twice_at_two_sizes(rng: torch.Generator) -> None:
    # The calls cost 1 and 1/4, and the own layer 1: AIMET keeps the last output shape alone.
    x = torch.randn(2, 20, 8, 8, generator=rng)
    (found,) = _check(_Twice(shrink=True), x, {"shared": ("weight_svd", {"rank": 9})})
    assert found.truth == pytest.approx((0.5 * 1.25 + 1) / 2.25, abs=1e-6)


class _Mixed(nn.Module):
    """Conv1d, attention, ConvTranspose1d, Sigmoid and average pooling."""

    def __init__(self, *, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(12, 32, 5, padding=2)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up = nn.ConvTranspose1d(32, 16, 4, stride=2, padding=1)
        self.pool = nn.AvgPool1d(2)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        """(N, 12, T) to (N, 16, T)."""
        x = self.conv(x).relu().transpose(1, 2)  # (N, T, 32)
        heads = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)  # (3, N, 4, T, 8)
        y = self.attend(*heads).transpose(1, 2).flatten(2)  # (N, T, 32)
        return self.pool(self.up(self.out(y).transpose(1, 2)).sigmoid())


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 8**0.5).softmax(-1) @ v


@pytest.mark.parametrize(
    "attend", [functional.scaled_dot_product_attention, _by_hand], ids=["fused", "plain"]
)
def test_everything_that_multiplies_is_in_the_total(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], rng: torch.Generator
) -> None:
    n_tokens = 20
    linears = n_tokens * (32 * 96 + 32 * 32)
    conv, up = n_tokens * 5 * 12 * 32, n_tokens * 4 * 32 * 16
    attention = 2 * 4 * n_tokens * n_tokens * 8
    model = _Mixed(attend=attend)
    x = torch.randn(2, 12, n_tokens, generator=rng)
    (found,) = _check(model, x, {"qkv": ("weight_svd", {"rank": 12}), "out": ("weight_svd", {"rank": 8})})
    total = linears + conv + up + attention
    assert found.plan.before.macs == total
    after = n_tokens * (12 * 128 + 8 * 64)
    assert found.truth == pytest.approx((total - linears + after) / total, abs=1e-6)
    # Of the Linear layers alone, as AIMET has it, the same plan would be exactly a half.
    assert after / linears == 0.5
    assert found.truth > 0.65


def test_budget_holds_for_everything_that_multiplies(rng: torch.Generator) -> None:
    model = _Mixed(attend=functional.scaled_dot_product_attention)
    (found,) = _check(model, torch.randn(2, 12, 20, generator=rng), 0.6)
    assert 0.57 < found.truth <= 0.6


def test_batch_size_does_not_change_the_cost(rng: torch.Generator) -> None:
    # AIMET counts Sigmoid and pooling as products, for the whole batch.
    model = _Mixed(attend=_by_hand).eval()
    costs = {
        sr.study(model, [torch.randn(n, 12, 20, generator=rng)], data_free=True, progress=False).before.macs
        for n in (1, 3)
    }
    assert len(costs) == 1
