# SPDX-License-Identifier: Apache-2.0
"""Moments of one pass over the data, against those of all rows at once."""

from dataclasses import replace

import pytest
import torch
from calibrate_nets import Twice, feed_of, fill, specs_of, vectors
from torch import Tensor, nn

from slimrank.calibrate import collect_moments, layer_seed, rows_wanted, states_of
from slimrank.cost import row_cap


def _moments_by_hand(rows: Tensor) -> tuple[Tensor, Tensor]:
    centred = rows - rows.mean(0)
    return rows.mean(0), centred.T @ centred / len(rows)


@pytest.mark.parametrize("cut", [(9,), (2, 7)], ids=str)
def test_moments_are_those_of_all_rows_of_all_calls(cut: tuple[int, ...], rng: torch.Generator) -> None:
    model, x = fill(Twice(), rng), vectors(rng)
    feed = feed_of(model, list(x.split(cut)))
    shared, head = specs_of(model, calls=2)
    moments = collect_moments(model, feed, {0: shared, 7: head}, seed=0, advance=lambda _n: None)
    fit = x[list(feed.fit)]
    between = model.shared(fit).tanh()
    for name, rows in (("shared", torch.cat([fit, between])), ("head", model.shared(between).tanh())):
        mean, matrix = _moments_by_hand(rows)
        assert moments[name].n_rows == len(rows)
        torch.testing.assert_close(moments[name].mean, mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(moments[name].matrix, matrix, rtol=0, atol=1e-6)


def test_padding_tokens_stay_out_of_the_moments(rng: torch.Generator) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(x) * attention_mask[:, :, None]

    model = fill(Masked(), rng)
    x = torch.randn((8, 5, 3), dtype=torch.float64, generator=rng)
    mask = torch.rand((8, 5), generator=rng) > 0.4
    x[~mask] = 1e6
    feed = feed_of(model, [{"x": x, "attention_mask": mask}])
    (spec,) = specs_of(model)
    moments = collect_moments(model, feed, {0: spec}, seed=0, advance=lambda _n: None)["fc"]
    fit = list(feed.fit)
    mean, matrix = _moments_by_hand(x[fit][mask[fit]])
    assert moments.n_rows == int(mask[fit].sum())
    torch.testing.assert_close(moments.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(moments.matrix, matrix, rtol=0, atol=1e-6)


def test_layers_that_are_never_called_have_no_moments(rng: torch.Generator) -> None:
    class Idle(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

    model = fill(Idle(), rng)
    specs = dict(enumerate(specs_of(model)))
    feed = feed_of(model, [vectors(rng)])
    assert collect_moments(model, feed, specs, seed=0, advance=lambda _n: None).keys() == {"head"}


def test_rows_are_capped_over_the_whole_data(rng: torch.Generator) -> None:
    model = fill(nn.Sequential(nn.Conv2d(1, 2, 1)), rng)
    x = torch.randn((10, 1, 60, 60), dtype=torch.float64, generator=rng)
    feed = feed_of(model, list(x.split(3)))
    (spec,) = specs_of(model)
    assert len(feed.fit) * 3600 > row_cap(spec)
    moments = collect_moments(model, feed, {0: spec}, seed=0, advance=lambda _n: None)["0"]
    # Each micro-batch rounds its share up.
    assert row_cap(spec) <= moments.n_rows <= row_cap(spec) + 10


def test_the_rows_of_a_layer_do_not_depend_on_the_others(rng: torch.Generator) -> None:
    model = fill(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)), rng)
    feed = feed_of(model, [torch.randn((10, 1, 60, 60), dtype=torch.float64, generator=rng)])
    first, second = specs_of(model)
    both = collect_moments(model, feed, {0: first, 1: second}, seed=0, advance=lambda _n: None)
    alone = collect_moments(model, feed, {1: second}, seed=0, advance=lambda _n: None)
    assert torch.equal(both["1"].mean, alone["1"].mean)
    other_seed = collect_moments(model, feed, {1: second}, seed=1, advance=lambda _n: None)
    assert not torch.equal(both["1"].mean, other_seed["1"].mean)


def test_the_seed_of_a_draw_tells_everything_apart() -> None:
    seeds = {
        layer_seed(seed, layer_index, batch_number, call)
        for seed in range(3)
        for layer_index in range(5)
        for batch_number in range(5)
        for call in range(3)
    }
    assert len(seeds) == 3 * 5 * 5 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rows_wanted_share_the_cap_among_calls() -> None:
    (spec,) = specs_of(nn.Sequential(nn.Linear(4, 4)))
    cap = row_cap(spec)
    assert rows_wanted(spec, 1.0) == cap
    assert rows_wanted(spec, 0.25) == cap // 4
    assert rows_wanted(replace(spec, calls=spec.calls * 4), 1.0) == cap // 4
    assert rows_wanted(replace(spec, calls=()), 1.0) == cap
    assert rows_wanted(spec, 1e-9) == 1


class _Heard(nn.Module):
    """Two layers in both directions, from zeros or from states that depend on the inputs."""

    def __init__(self, *, has_states: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)
        self.has_states = has_states

    def forward(self, x: Tensor) -> Tensor:
        state = x.mean((1, 2))[None, :, None].expand(4, -1, 2).contiguous()
        return self.rnn(x, (state, state))[0] if self.has_states else self.rnn(x)[0]


@pytest.mark.parametrize("has_states", [False, True])
def test_states_of_every_layer_of_a_recurrent_module(has_states: bool, rng: torch.Generator) -> None:
    model = fill(_Heard(has_states=has_states), rng)
    x = torch.randn((9, 4, 3), dtype=torch.float64, generator=rng)
    feed = feed_of(model, [x])
    (spec,) = specs_of(model)
    moments = collect_moments(model, feed, {0: spec}, seed=0, advance=lambda _n: None)
    if has_states:
        # What the layers inside are given cannot be told.
        assert set(moments) == {"rnn"}
        return
    first = nn.LSTM(3, 2, batch_first=True, bidirectional=True).double()
    first.load_state_dict({key: value for key, value in model.rnn.state_dict().items() if "_l0" in key})
    fit = x[list(feed.fit)]
    for layer, rows in enumerate((first(fit)[0].detach(), model(fit))):
        mean, matrix = _moments_by_hand(rows.flatten(0, 1))
        torch.testing.assert_close(moments[states_of("rnn", layer)].mean, mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(moments[states_of("rnn", layer)].matrix, matrix, rtol=0, atol=1e-6)
