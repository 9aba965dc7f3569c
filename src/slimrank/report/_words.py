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


def layers_by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Layers that share a reason, told once.

    Args:
        reasons: layer name to reason, in execution order.

    Returns:
        Pairs of the names, joined by commas, and their reason; in the order of the first layer of each.
    """
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return [(", ".join(names), reason) for reason, names in layers.items()]
