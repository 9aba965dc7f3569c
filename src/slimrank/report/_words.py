# SPDX-License-Identifier: Apache-2.0
"""The words that text and page share."""

from collections.abc import Mapping
from types import MappingProxyType

from slimrank.records import LayerResult, LayerSpec, Metric, Setting

METRIC_LABELS: Mapping[Metric, str] = MappingProxyType(
    {"macs": "MACs", "params": "parameters", "bytes": "weight bytes"}
)
DIVERGENCE_LABEL = "Divergence from the original, measured on held-out samples"
DAMAGE_LABEL = "Damage predicted by the plan"
ELSEWHERE_LABEL = "(outside layers)"


def setting_text(setting: Setting | None) -> str:
    """Method and form of a setting ("spatial_svd v_h"); "left alone" for None."""
    if setting is None:
        return "left alone"
    return setting.method if setting.form == "linear" else f"{setting.method} {setting.form}"


def why_left(layer: LayerResult) -> str:
    """Why a layer without a setting was left alone."""
    return layer.reason or "not in the plan"


def why_not(spec: LayerSpec) -> str:
    """Why no method applies to a layer."""
    return spec.reason or "no method applies"


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape without spaces: "64x3x7x7"; "-" for an empty one."""
    return "x".join(map(str, shape)) or "-"
