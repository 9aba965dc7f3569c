# SPDX-License-Identifier: Apache-2.0
"""Train the kinds' networks anew; their weights are committed under ``weights/``.

Run from the repository root::

    python -m benchmarks.kinds.train                # all of them
    python -m benchmarks.kinds.train vae pitch      # some
"""

import sys
import time

import torch

from benchmarks.kinds.table import KINDS


def main() -> None:
    """Trains, writes and prints how good each is."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or KINDS:
        kind, start = KINDS[name], time.process_time()
        model = kind.train()
        kind.write(model)
        seconds = time.process_time() - start
        n_params = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name}: {kind.measured} {kind.score(model):.4g}, {n_params:,} params, {seconds:.0f} s")


if __name__ == "__main__":
    main()
