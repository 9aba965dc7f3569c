# SPDX-License-Identifier: Apache-2.0
"""What takes the place of a block that is gone."""

from types import SimpleNamespace

from torch import nn

from slimrank.records import Passes

_PLAIN = (bool, int, float, str, type(None))


class Bypass(nn.Module):
    """Gives back what it is called with, in the place of a block with several arguments or results.

    Args:
        passes: what it gives: an argument by position or by name, None, or a tuple of these.
    """

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, *args: object, **kwargs: object) -> object:
        """The arguments that are passed on."""
        return _given(self.passes, args, kwargs)

    def extra_repr(self) -> str:
        """What is passed on."""
        return f"passes={self.passes!r}"


def bypass_of(block: nn.Module, passes: Passes) -> nn.Module:
    """A module that takes the place of a block.

    Args:
        block: that goes.
        passes: what the model gets in place of its result; None for its only argument.

    Returns:
        The identity, or a ``Bypass`` with the plain attributes of the block, which models ask for (such as
        the kind of attention of a layer).
    """
    if passes is None:
        return nn.Identity()
    bypass = Bypass(passes)
    for name, value in vars(block).items():
        if not name.startswith("_") and name not in vars(bypass) and _is_plain(value):
            setattr(bypass, name, value)
    if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        # Torch's stacks of layers ask the first one.
        vars(bypass)["self_attn"] = SimpleNamespace(batch_first=block.self_attn.batch_first)
    return bypass


def _given(passes: Passes, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    if isinstance(passes, tuple):
        return tuple(_given(part, args, kwargs) for part in passes)
    if passes is None:
        return None
    return args[passes] if isinstance(passes, int) else kwargs[passes]


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
