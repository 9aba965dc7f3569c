# SPDX-License-Identifier: Apache-2.0
"""A network in a process of its own, which prints rows as it gets on and may be killed."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


def last_row(
    command: Sequence[str], limit: int, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], str]:
    """The last row that a process printed, and what ended it.

    Args:
        command: of the process; it prints rows as JSON, one a line.
        limit: seconds after which it is killed.
        environment: of the process; None for that of this one.

    Returns:
        The row, empty where none was printed; and the error, "" where it came through.
    """
    killed = ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
        printed = done.stdout
        if done.returncode:
            last = " ".join(done.stderr.splitlines()[-1:])[:250]
            killed = f"exit {done.returncode}: {last}"
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        printed = out.decode() if isinstance(out, bytes) else out
        killed = f"not done in {limit} s"
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}), killed
