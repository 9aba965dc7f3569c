# SPDX-License-Identifier: Apache-2.0
"""A model becomes the compressed one: the model that is given up is the one that is built in."""

import torch
from torch import nn

from slimrank.fitting import apply_plan
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import ChannelMap, Cost, Setting
from specs import linear


def _plan(rank: int) -> Plan:
    structure = structure_of([linear("0", 6, 8), linear("2", 4, 6)], ChannelMap(groups={}, tensors={}))
    setting = Setting(method="weight_svd", form="linear", rank=rank)
    step = Step(structure=structure, layers={"2": (setting,)}, groups={})
    return Plan(steps=(step,), before=Cost(macs=72, params=82, bytes=328), has_bias=True)


def test_the_given_model_becomes_the_compressed_one(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).train()
    model[1].eval()
    x = torch.randn(5, 8, generator=rng)
    with torch.no_grad():
        before = model(x)
    done: list[str] = []
    applied = apply_plan(model, _plan(4), data=None, on_layer=None, journal=None, advance=done.append)
    assert applied.model is model
    assert (applied.fits, done) == ({"2": "weights"}, ["2"])
    assert [module.out_features for module in model[2]] == [4, 4]
    # Modes are as they were, and the factors have the mode of the layer that they replace.
    assert [module.training for module in model] == [True, False, True]
    assert all(module.training for module in model[2])
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
