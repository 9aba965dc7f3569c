# SPDX-License-Identifier: Apache-2.0
"""Frozen values that go from room to room."""

from slimrank.records._activation_bytes import ActivationBytes, PlannedActivations
from slimrank.records._agreement import Agreement, OutputAgreement, element_at
from slimrank.records._cost import LATENCY, METRICS, Budgeted, Cost, Metric, ratio_of
from slimrank.records._curve import BlockDamage, Curve, GroupCurve
from slimrank.records._exported import Exported
from slimrank.records._group import (
    AxisUnits,
    BlockSpec,
    ChannelMap,
    GroupSpec,
    Kept,
    Passes,
    ProductSpec,
    Role,
    TensorSpec,
)
from slimrank.records._int8 import Int8
from slimrank.records._latency import (
    DenseTime,
    LayerTimes,
    NetworkTimes,
    PairTime,
    Steps,
    step_edge,
    with_parts,
)
from slimrank.records._layer import Call, LayerKind, LayerSpec
from slimrank.records._likelihood import (
    FAMILIES,
    LIKELIHOODS,
    Family,
    LikelihoodChoice,
    LikelihoodName,
    Weights,
    likelihood_of,
    weights_of,
)
from slimrank.records._note import Note
from slimrank.records._peak_point import Limited, PairBytes, PeakPoint
from slimrank.records._reached_latency import PlannedLatency, ReachedLatency
from slimrank.records._rows import Curves, Frame, GroupCurves, Layers, data_frame
from slimrank.records._setting import (
    ALL_METHODS,
    CHANNEL_ORDERS,
    EFFORTS,
    METHODS,
    MORE_METHODS,
    PRUNING,
    ChannelOrder,
    Effort,
    Form,
    Method,
    Setting,
    replaces_groups,
)
from slimrank.records._summary import LayerResult, Measurement, Summary

__all__ = [
    "ALL_METHODS",
    "CHANNEL_ORDERS",
    "EFFORTS",
    "FAMILIES",
    "LATENCY",
    "LIKELIHOODS",
    "METHODS",
    "METRICS",
    "MORE_METHODS",
    "PRUNING",
    "ActivationBytes",
    "Agreement",
    "AxisUnits",
    "BlockDamage",
    "BlockSpec",
    "Budgeted",
    "Call",
    "ChannelMap",
    "ChannelOrder",
    "Cost",
    "Curve",
    "Curves",
    "DenseTime",
    "Effort",
    "Exported",
    "Family",
    "Form",
    "Frame",
    "GroupCurve",
    "GroupCurves",
    "GroupSpec",
    "Int8",
    "Kept",
    "LayerKind",
    "LayerResult",
    "LayerSpec",
    "LayerTimes",
    "Layers",
    "LikelihoodChoice",
    "LikelihoodName",
    "Limited",
    "Measurement",
    "Method",
    "Metric",
    "NetworkTimes",
    "Note",
    "OutputAgreement",
    "PairBytes",
    "PairTime",
    "Passes",
    "PeakPoint",
    "PlannedActivations",
    "PlannedLatency",
    "ProductSpec",
    "ReachedLatency",
    "Role",
    "Setting",
    "Steps",
    "Summary",
    "TensorSpec",
    "Weights",
    "data_frame",
    "element_at",
    "likelihood_of",
    "ratio_of",
    "replaces_groups",
    "step_edge",
    "weights_of",
    "with_parts",
]
