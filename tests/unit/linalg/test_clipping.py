# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from slimrank.linalg import Clipping

INF = float("inf")


def test_what_is_clipped_away_in_both_is_left_as_predicted() -> None:
    clip = Clipping(gains=torch.tensor([2.0]), low=0.0, high=6.0)
    outputs = torch.tensor([[-3.0], [-3.0], [1.0], [4.0], [4.0]])
    predicted = torch.tensor([[-1.0], [1.0], [-1.0], [5.0], [1.0]])
    wanted = clip.wanted(outputs, predicted, torch.zeros(1))
    # Both below: as predicted. Wanted below, predicted above: the end. Above likewise.
    assert wanted.flatten().tolist() == [-1.0, 0.0, 1.0, 5.0, 3.0]


def test_offsets_and_negative_gains_move_the_ends() -> None:
    clip = Clipping(gains=torch.tensor([-1.0]), low=0.0, high=INF)
    outputs, predicted = torch.tensor([[3.0], [0.0]]), torch.tensor([[4.0], [4.0]])
    # clip(2 - y): 3 and 4 both give zero; 0 gives 2.
    assert clip.wanted(outputs, predicted, torch.tensor([2.0])).flatten().tolist() == [4.0, 0.0]


def test_no_difference_after_the_clipping_is_no_error() -> None:
    clip = Clipping(gains=torch.tensor([1.0, 2.0]), low=0.0, high=INF)
    outputs = torch.tensor([[-1.0, 3.0]])
    assert clip.errors(outputs, torch.tensor([[-9.0, 3.0]]), torch.zeros(2)).abs().max() == 0
    # In units of the layer's output, so the gain does not enter.
    assert clip.errors(outputs, torch.tensor([[-1.0, 3.5]]), torch.zeros(2))[0, 1] == pytest.approx(0.5)


def test_channels_without_gain_are_compared_plainly() -> None:
    clip = Clipping(gains=torch.tensor([1.0, 0.0]), low=0.0, high=INF)
    outputs, predicted = torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0, 7.0]])
    assert clip.errors(outputs, predicted, torch.zeros(2))[0].tolist() == [0.0, 2.0]
    assert clip.wanted(outputs, predicted, torch.zeros(2))[0].tolist() == [1.0, 5.0]


def test_wanted_outputs_are_the_nearest_with_the_right_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    clip = Clipping(gains=torch.tensor([1.5, -0.5, 1.0]), low=0.0, high=1.0)
    outputs, predicted, offsets = (torch.randn(500, 3, generator=generator) for _ in range(3))
    wanted = clip.wanted(outputs, predicted, offsets)
    assert clip.errors(outputs, wanted, offsets).abs().max() < 1e-5
    # Never farther from the prediction than the outputs themselves.
    assert ((wanted - predicted).abs() <= (outputs - predicted).abs() + 1e-5).all()
