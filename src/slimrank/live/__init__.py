# SPDX-License-Identifier: Apache-2.0
"""A run, and a plan that is edited, in the browser."""

from slimrank.live._edit_server import edit_in_browser
from slimrank.live._local import Live
from slimrank.live._server import serve, serve_from_start

__all__ = ["Live", "edit_in_browser", "serve", "serve_from_start"]
