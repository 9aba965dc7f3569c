# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, one call, text or JSON out."""

import sys

from slimrank.cli._stopped import STOPPED, told_at_start

__all__ = [
    "main",
]


def main() -> None:
    """The program ``slimrank``."""
    try:
        # While this is imported Ctrl-C is answered, too.
        from slimrank.cli._main import run  # noqa: PLC0415

        run()
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{told_at_start()}\n")
        sys.exit(STOPPED)
