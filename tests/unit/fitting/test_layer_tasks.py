# SPDX-License-Identifier: Apache-2.0
"""What is wanted of a slimmed layer, and how much its outputs matter."""

import torch

from seams import layer_tasks
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import AxisUnits, ChannelMap, Cost, GroupSpec, Setting, TensorSpec
from specs import linear

_QKV = linear("qkv", 8, 5, tokens=3, has_bias=False)


def _plan(*queries: int) -> Plan:
    width = GroupSpec(name="qkv#2", units=4, unit_width=1, producers=("qkv",), consumers=(), is_inner=True)
    axis = AxisUnits(group="qkv#2", dim=0, role="output", units=(0, 1, 2, 3) * 2, queries=queries)
    weight = TensorSpec(
        name="qkv.weight", shape=(8, 5), itemsize=4, is_parameter=True, positions=3, axes=(axis,)
    )
    structure = structure_of([_QKV], ChannelMap(groups={"qkv#2": width}, tensors={"qkv.weight": weight}))
    setting = Setting(method="weight_svd", form="linear", rank=1)
    step = Step(structure=structure, layers={"qkv": (setting,)}, groups={"qkv#2": (0, 2)})
    return Plan(steps=(step,), before=Cost(macs=120, params=40, bytes=160), has_bias=False)


def test_queries_are_wanted_scaled_and_matter_as_much(rng: torch.Generator) -> None:
    (task,) = layer_tasks(_plan(0, 1, 2, 3)).values()
    outputs, gradients = (torch.randn(6, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    wanted, kept = task.slimmed_outputs(outputs), outputs[:, [0, 2, 4, 6]]
    torch.testing.assert_close(wanted, kept * torch.tensor([0.5, 0.5, 1, 1]) ** 0.5)
    assert task.slimmed_outputs(outputs.bfloat16()).dtype == torch.bfloat16
    gram, before = task.slimmed_gram(gradients.T @ gradients), (gradients.T @ gradients)[::2, ::2]
    assert gram is not None
    # What an error costs does not depend on the scale in which it is written down.
    torch.testing.assert_close(wanted @ gram @ wanted.T, kept @ before @ kept.T)
    assert task.slimmed_gram(None) is None


def test_other_outputs_are_wanted_as_they_are(rng: torch.Generator) -> None:
    (task,) = layer_tasks(_plan()).values()
    assert task.scales is None
    outputs = torch.randn(6, 8, generator=rng)
    torch.testing.assert_close(task.slimmed_outputs(outputs), outputs[:, [0, 2, 4, 6]], rtol=0, atol=0)
    gram = outputs.T @ outputs
    torch.testing.assert_close(task.slimmed_gram(gram), gram[::2, ::2], rtol=0, atol=0)
