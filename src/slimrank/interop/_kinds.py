# SPDX-License-Identifier: Apache-2.0
"""Classes of other libraries, known by their names: nothing is imported for it."""

import re
from functools import lru_cache


def class_name(thing: object) -> str:
    """The full name of the class of a thing; that of a built-in one is short."""
    kind = type(thing)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def is_kind(thing: object, pattern: str) -> bool:
    r"""Whether a thing is of a class whose full name begins as a pattern says, or of one derived from it.

    Args:
        thing: anything.
        pattern: a regular expression, such as ``r"peft\.peft_model\.Peft"``.
    """
    return _derives(type(thing), pattern)  # type: ignore[arg-type]


# Models have thousands of modules of few classes.
@lru_cache(maxsize=4096)
def _derives(kind: type, pattern: str) -> bool:
    return any(re.match(pattern, f"{base.__module__}.{base.__qualname__}") for base in kind.__mro__)
