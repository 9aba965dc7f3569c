# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, one call, text or JSON out."""

from slimrank.cli._main import main

__all__ = [
    "main",
]
