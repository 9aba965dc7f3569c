# SPDX-License-Identifier: Apache-2.0
"""Parts of the way to an int8 file: pairs in balance, samples for two uses, what one layer costs."""

import copy
import math
import os
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.forward import Batch


def _batch(*tensors: Tensor) -> Batch:
    return Batch(args=tensors, kwargs={})


def _rounded(values: Tensor) -> Tensor:
    """With 256 steps between the smallest and the largest, one scale for all."""
    low, high = float(values.min().clamp_max(0)), float(values.max().clamp_min(0))
    scale = (high - low) / 255
    return (values / scale).round() * scale


def _noise(pair: nn.Sequential, x: Tensor) -> float:
    """Squared error that rounding the values between brings to the output."""
    middle = pair[0](x)
    return float((pair[1](_rounded(middle)) - pair[1](middle)).square().sum())


def _pair(kind: str, rng: torch.Generator) -> tuple[nn.Sequential, Tensor]:
    """A pair as a decomposition leaves it: channels of very different size between."""
    if kind == "linear":
        pair, x = (
            nn.Sequential(nn.Linear(24, 12, bias=False), nn.Linear(12, 24)),
            torch.randn(64, 5, 24, generator=rng),
        )
    else:
        pair = nn.Sequential(
            nn.Conv2d(6, 12, (3, 1), padding=(1, 0), bias=kind == "bias"),
            nn.Conv2d(12, 6, (1, 3), padding=(0, 1), stride=(1, 2)),
        )
        x = torch.randn(16, 6, 8, 8, generator=rng)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
        sizes = torch.logspace(0, -2, 12).reshape(-1, *[1] * (pair[0].weight.ndim - 1))
        pair[0].weight.mul_(sizes)
    return pair.eval(), x


@pytest.mark.parametrize("kind", ["linear", "conv", "bias"])
@torch.no_grad()
def test_a_balanced_pair_computes_the_same_with_less_noise(kind: str, rng: torch.Generator) -> None:
    pair, x = _pair(kind, rng)
    model = nn.Sequential(nn.Identity(), nn.Sequential(pair, nn.ReLU()), nn.ReLU())
    expected, before = model(x), _noise(pair, x)
    assert seams.balance_pairs(model, [_batch(x)]) == ["1.0"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert _noise(pair, x) < 0.5 * before


@torch.no_grad()
def test_what_is_no_plain_pair_stays(rng: torch.Generator) -> None:
    pair, x = _pair("linear", rng)
    hooked = copy.deepcopy(pair)
    hooked[0].register_forward_hook(lambda *_: None)
    shared = copy.deepcopy(pair)
    others = [
        nn.Sequential(nn.Linear(24, 12), nn.ReLU()),
        nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 24)),
        hooked,
        nn.Sequential(shared, shared[0], shared[1]),
        pair.double(),
    ]
    for model in others:
        tensors = [value.clone() for value in model.state_dict().values()]
        assert seams.balance_pairs(model, [_batch(x.to(tensors[0].dtype))]) == []
        assert all(map(torch.equal, tensors, model.state_dict().values()))


@torch.no_grad()
def test_a_pair_that_cannot_be_balanced_is_as_before(rng: torch.Generator) -> None:
    pair, x = _pair("linear", rng)
    pair[0].weight.zero_()
    assert seams.balance_pairs(pair, [_batch(x)]) == []
    pair[0].weight.fill_(float("nan"))
    weight = pair[1].weight.clone()
    assert seams.balance_pairs(pair, [_batch(x)]) == []
    assert torch.equal(pair[1].weight, weight)


def test_samples_are_split_where_there_are_enough() -> None:
    def split(n_samples: int) -> tuple[list[float], list[float]]:
        samples = seams.read_samples([_batch(torch.arange(n_samples).float())], 256)
        calibration, judged = (part.batch.args[0] for part in samples.split())
        assert isinstance(calibration, Tensor)
        assert isinstance(judged, Tensor)
        return calibration.tolist(), judged.tolist()

    assert split(16) == (list(range(12)), list(range(12, 16)))
    assert split(15) == (list(range(15)), list(range(15)))
    calibration, judged = split(400)
    assert (len(calibration), len(judged), judged[-1]) == (192, 64, 255)


def test_samples_of_many_batches_keep_their_order() -> None:
    batches = [_batch(torch.arange(3).float()[:, None] + 3 * index) for index in range(20)]
    samples = seams.read_samples(batches, 50)
    (x,) = samples.batch.args
    assert isinstance(x, Tensor)
    assert (samples.n_first, x.flatten().tolist()) == (3, list(range(50)))
    assert [batch.n_samples for batch in samples.in_batches(8)] == [3, 3, 3]


def test_large_samples_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.limit_calibration(monkeypatch, n_bytes=40 * 4)
    batches = [_batch(torch.zeros(4, 1)) for _ in range(30)]
    assert seams.read_samples(batches, 256).batch.n_samples == 40


def test_decibels() -> None:
    assert seams.decibels(100.0, 1.0) == pytest.approx(20)
    assert seams.decibels(1.0, 0.0) == math.inf
    assert seams.decibels(0.0, 1.0) == -math.inf
    for noise in (math.inf, math.nan):
        assert seams.decibels(1.0, noise) == -math.inf
    assert seams.decibels(math.inf, math.inf) == -math.inf


def test_values_that_are_not_finite_are_noise_where_they_differ() -> None:
    inf, nan = math.inf, math.nan
    expected = torch.tensor([3.0, -inf, nan, inf])
    assert seams.signal_and_noise(expected, torch.tensor([1.0, -inf, nan, inf])) == (9, 4)
    for other in ([nan, -inf, nan, inf], [inf, -inf, nan, inf], [3.0, 0.0, nan, inf], [3.0, -inf, 0.0, inf]):
        assert seams.signal_and_noise(expected, torch.tensor(other)) == (9, inf)


def test_masks_are_not_rounded() -> None:
    mask = torch.tensor([0.0, -math.inf])
    assert seams.round_values(mask, -1.0, 1.0) is mask
    lowest = torch.tensor([0.5, torch.finfo(torch.float32).min])
    assert seams.round_values(lowest, -1.0, 1.0) is lowest
    assert not torch.equal(
        seams.round_values(torch.tensor([0.3, -1.0]), -1.0, 1.0), torch.tensor([0.3, -1.0])
    )


@pytest.mark.parametrize(
    "value", [1, 0, 0.5, math.inf, np.float32(0.5), np.int64(2), Decimal("0.5"), Fraction(1, 2)]
)
def test_any_number_is_a_drop(value: object) -> None:
    assert seams.check_drop(value, "int8") == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), "1", math.nan, -1, Decimal("nan"), Decimal("sNaN"), 10**400, np.float32(-1)],
)
def test_what_is_no_drop_is_refused(value: object) -> None:
    with pytest.raises(sr.OptionError, match=r"max_quant_drop=.*; give the divergence per sample"):
        seams.check_drop(value, "int8")


@pytest.mark.parametrize("before", [None, "0"])
def test_a_package_is_imported_without_reports_unless_the_user_says_otherwise(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"imported_with_{before}"
    (tmp_path / f"{name}.py").write_text("import os\nseen = os.environ['ORT_DISABLE_TELEMETRY']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if before is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before)
    module = seams.import_package(name, extra="export", what="this test")
    assert (module.seen, os.environ.get("ORT_DISABLE_TELEMETRY")) == (before or "1", before)


def test_lists_are_samples() -> None:
    rows = [torch.randn(3, 4) for _ in range(3)]
    assert not seams.is_constant(Batch(args=(rows,), kwargs={}))
    assert seams.is_constant(Batch(args=([rows[0]] * 3,), kwargs={}))
    levels = [torch.full((2, 2), float(index)) for index in range(3)]
    assert not seams.is_constant(Batch(args=(levels,), kwargs={}))


def test_a_mask_of_ones_beside_ids_is_not_constant() -> None:
    ids = torch.arange(12).reshape(3, 4)
    assert not seams.is_constant(Batch(args=(), kwargs={"mask": torch.ones(3, 4), "ids": ids}))
    assert not seams.is_constant(Batch(args=(), kwargs={"ids": ids[:1], "mask": torch.ones(1, 4)}))


@pytest.mark.parametrize(("value", "is_constant"), [(0.0, True), (3.0, True), (None, False)])
def test_constant_inputs_are_seen(value: float | None, is_constant: bool) -> None:
    tensor = torch.arange(6.0) if value is None else torch.full((6,), value)
    assert seams.is_constant(_batch(tensor, torch.ones(6, dtype=torch.int64))) is is_constant


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_zeros_of_either_sign_are_one_constant(dtype: torch.dtype) -> None:
    zeros = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 2.0, -3.0], [1.0, 1.0, 1.0]], dtype=dtype) * 0
    assert zeros.signbit().any()
    assert seams.is_constant(_batch(zeros))
    assert seams.is_constant(_batch(zeros[:1]))
    assert not seams.is_constant(_batch(torch.cat([zeros, torch.ones(1, 3, dtype=dtype)])))
    assert zeros.signbit().any()


def test_samples_that_are_all_the_same_are_seen() -> None:
    row = torch.arange(4.0)
    assert seams.is_constant(_batch(row.expand(3, 4), torch.ones(3, 1)))
    assert not seams.is_constant(_batch(row[None], torch.ones(1, 1)))
    assert not seams.is_constant(_batch(row.expand(3, 4), torch.arange(3)))


@pytest.mark.parametrize(
    ("of_torch", "capabilities", "expected"),
    [
        (True, {}, True),
        (False, {"avx_vnni": True}, True),
        (False, {"avx_vnni": False}, False),
        # Of ARM it tells other things.
        (False, {"dot": True}, False),
        # Before torch had it.
        (False, None, False),
    ],
)
def test_either_kind_of_vnni_counts(
    of_torch: bool,
    capabilities: Mapping[str, bool] | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: of_torch)
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert seams.cpu_has_vnni() is expected
