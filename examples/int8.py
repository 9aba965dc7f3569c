# SPDX-License-Identifier: Apache-2.0
"""Compress, then write an int8 file: size, time and agreement of both steps.

From the repository root, with ``pip install 'slimrank[export]'``: ``python examples/int8.py``
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import slimrank as sr
from slimrank import demo


def main() -> None:
    """Exports the compressed network in float and in int8, and prints both beside the original."""
    # Kernels for int8 compute 16 channels at a time.
    study = sr.study(demo.build(), demo.calibration_batches(), progress=False)
    result = study.apply(study.plan(macs=0.5, multiple_of=16))
    with TemporaryDirectory() as folder:
        in_float = result.export(Path(folder) / "float.onnx")
        in_int8 = result.export(Path(folder) / "int8.onnx", quantize="int8")
    print(f"original, float:    {in_float.before_bytes / 1e3:6.0f} kB  {in_float.before_ms:.3f} ms")
    for name, exported in (("half of the MACs", in_float), ("the same, int8", in_int8)):
        print(f"{name + ':':20}{exported.bytes / 1e3:6.0f} kB  {exported.after_ms:.3f} ms")
    print(in_int8.int8.summary())


if __name__ == "__main__":
    main()
