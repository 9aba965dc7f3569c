# SPDX-License-Identifier: Apache-2.0
"""A run in the browser."""

from slimrank.live._server import Live, serve

__all__ = ["Live", "serve"]
