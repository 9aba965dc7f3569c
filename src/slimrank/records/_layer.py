# SPDX-License-Identifier: Apache-2.0
"""The geometry of a layer, as it is in one forward of one sample."""

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["linear", "conv1d", "conv2d", "conv3d", "recurrent", "other"]
# By the name of the class, since records know no torch: another class of such a name would be read as one.
_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a layer, for ONE sample.

    Attributes:
        input_shape: shape of the first argument, batch dimension included (usually 1).
        output_shape: shape of what came out, same convention.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """A layer: geometry, calls, and whether it can be compressed.

    Attributes:
        name: dotted name in ``named_modules()``.
        kind: "linear", "conv1d", "conv2d", "conv3d", "recurrent", or "other" for a layer that no method
            handles. Of a recurrent layer, all that follows is about what its first layer makes of the inputs:
            the input matrices of both directions, one below the other, and their biases.
        class_name: class of the module, for people.
        weight_shape: (C_out, C_in / groups, *kernel) or (out_features, in_features).
        has_bias: whether the layer has a bias.
        dtype: of the weight, without prefix ("float32").
        itemsize: bytes of one weight.
        stride, dilation: per spatial dimension; () for linear.
        padding: per spatial dimension, or "same"/"valid"; () for linear.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: of the convolution; 1 otherwise.
        calls: every call in one forward, in order.
        macs, params: of this layer for one sample, all calls summed.
        methods: methods that apply.
        reason: why no method applies; None where one does.
    """

    name: str
    kind: LayerKind
    class_name: str
    weight_shape: tuple[int, ...]
    has_bias: bool
    dtype: str
    itemsize: int
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] | Literal["same", "valid"] = ()
    padding_mode: str = "zeros"
    groups: int = 1
    calls: tuple[Call, ...] = ()
    macs: int = 0
    params: int = 0
    methods: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution: its weight is (C_in, C_out / groups, *kernel)."""
        return self.kind == "other" and self.class_name in _TRANSPOSED

    @property
    def is_recurrent(self) -> bool:
        """Whether it stands for the input matrix of a recurrent layer."""
        return self.kind == "recurrent"

    @property
    def reads_last_dim(self) -> bool:
        """Whether a row of its inputs is the last dimension of what it reads; else channels come before."""
        return self.kind == "linear" or self.is_recurrent

    @property
    def n_outputs(self) -> int:
        """Channels or features that it makes: C_out."""
        return self.weight_shape[1 if self.is_transposed else 0]

    @property
    def has_matrix(self) -> bool:
        """Whether it applies a matrix to rows of its input, which can be fitted."""
        if self.is_recurrent:
            # Without a bias nothing takes up a mean that moves.
            return self.has_bias and self.has_states
        return self.kind != "other" or self.is_transposed

    @property
    def has_states(self) -> bool:
        """Whether it is a recurrent layer whose steps can be told from its samples: no packed sequences."""
        return self.is_recurrent and all(call.input_shape for call in self.calls)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial dimension; () for linear."""
        return self.weight_shape[2:]
