# SPDX-License-Identifier: Apache-2.0
"""A network that takes 70 % of the time in onnxruntime, one thread, a batch of 16.

From the repository root, with ``pip install 'slimrank[export]'``: ``python examples/latency_target.py``
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import slimrank as sr
from slimrank import demo


def main() -> None:
    """Measures the layers, plans by their times, measures the result beside the original."""
    study = sr.study(demo.build(), demo.calibration_batches(), progress=False)
    table = sr.measure_latency(study, backend="onnxruntime", batch=16, threads=1, progress=False)
    plan = study.plan(latency=0.7, latencies=table)
    print(f"predicted: {plan.latency.predicted:.2f} of the time, {plan.keep_ratio('macs'):.2f} of the MACs")

    result = sr.meet_latency(study, 0.7, latencies=table)
    times = result.latency
    print(f"measured: {times.before_ms:.2f} ms before, {times.after_ms:.2f} ms after ({times.measured:.2f})")
    print(f"divergence from the original: {result.divergence:.4f} {result.unit}")

    with TemporaryDirectory() as folder:
        print(result.export(Path(folder) / "model.onnx", batch=16).summary())


if __name__ == "__main__":
    main()
