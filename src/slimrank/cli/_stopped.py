# SPDX-License-Identifier: Apache-2.0
"""What Ctrl-C is answered. Imports nothing, since it may come while other files are imported."""

# Exit code: 128 + SIGINT, as shells count.
STOPPED = 130


def told(how_to_go_on: str) -> str:
    """The line for people.

    Args:
        how_to_go_on: what is kept, and where.
    """
    return f"slimrank: stopped; {how_to_go_on}"


def told_at_start() -> str:
    """The line before a command has begun."""
    return told(
        "the command had not begun, so nothing was changed; what earlier calls kept in a run directory is "
        "there: the same command goes on from it"
    )
