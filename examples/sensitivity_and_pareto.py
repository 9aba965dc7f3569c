# SPDX-License-Identifier: Apache-2.0
"""Which layers are sensitive, and what each budget would cost: a look before anything is compressed.

From the repository root: ``python examples/sensitivity_and_pareto.py``
"""

import slimrank as sr
from slimrank import demo


def main() -> None:
    """Prints the layers by predicted damage, and a curve over budgets, measured."""
    study = sr.study(demo.build(), demo.calibration_batches(), effort="fast", progress=False)
    macs = {layer.name: layer.macs for layer in study.layers}
    damages: dict[str, float] = {}
    for curve in study.curves:
        affordable = curve.damage[curve.macs <= macs[curve.layer] / 2]
        if len(affordable):
            damages[curve.layer] = min(float(affordable.min()), damages.get(curve.layer, float("inf")))
    print(f"One layer alone at half of its MACs, predicted divergence in {study.unit}:")
    for name in sorted(damages, key=damages.__getitem__, reverse=True):
        print(f"  {name:20} {damages[name]:.4f}  {macs[name] / study.before.macs:6.1%} of the MACs")

    curve = study.pareto(points=5)
    print(curve.summary())
    print(f"knee: {curve.knee().plan.keep_ratio('macs'):.2f} of {study.before.macs:,} MACs")


if __name__ == "__main__":
    main()
