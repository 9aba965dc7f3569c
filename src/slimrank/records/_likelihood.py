# SPDX-License-Identifier: Apache-2.0
"""How outputs shall be read, as a caller asks for it."""

from collections.abc import Mapping, Sequence
from typing import Literal

from slimrank._errors import OptionError
from slimrank._names import listed
from slimrank._numbers import real_number

Family = Literal["categorical", "bernoulli", "gaussian"]
FAMILIES: tuple[Family, ...] = ("categorical", "bernoulli", "gaussian")
LikelihoodName = Literal["auto", "categorical", "bernoulli", "gaussian"]
LikelihoodChoice = LikelihoodName | Mapping[str, LikelihoodName] | Sequence[LikelihoodName]
Weights = Mapping[str, float] | Sequence[float] | None
# What may be asked for.
LIKELIHOODS: tuple[LikelihoodName, ...] = ("auto", *FAMILIES)


def likelihood_of(choice: object) -> LikelihoodChoice:
    """A choice as a caller typed it, in one form, families checked.

    Args:
        choice: a family, a mapping from outputs to families, or a list of families.

    Returns:
        A family; a mapping with text keys, sorted; or a tuple.

    Raises:
        OptionError: an unknown family, another type, or nothing.
    """
    _check_not_empty(choice, "likelihood")
    if isinstance(choice, str):
        return _named(choice, "likelihood")
    if isinstance(choice, Mapping):
        named = {str(key): _named(value, f"likelihood[{key!r}]") for key, value in choice.items()}
        return dict(sorted(named.items()))
    if isinstance(choice, Sequence) and not isinstance(choice, bytes):
        return tuple(_named(value, f"likelihood[{index}]") for index, value in enumerate(choice))
    raise OptionError(
        f"likelihood={choice!r}; give one of {listed(LIKELIHOODS)}, a dict from outputs to these, or a list "
        "of them"
    )


def weights_of(weights: object) -> Weights:
    """Weights as a caller typed them, in one form.

    Args:
        weights: a mapping from outputs to numbers, a list of numbers, or None.

    Returns:
        A mapping with text keys, sorted; a tuple; or None.

    Raises:
        OptionError: no positive numbers, another type, or nothing.
    """
    _check_not_empty(weights, "weights")
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        named = {str(key): _weight(value, f"weights[{key!r}]") for key, value in weights.items()}
        return dict(sorted(named.items()))
    if isinstance(weights, Sequence) and not isinstance(weights, str | bytes):
        return tuple(_weight(value, f"weights[{index}]") for index, value in enumerate(weights))
    raise OptionError(
        f"weights={weights!r}; give a dict from outputs to positive numbers, or a list of numbers"
    )


def _check_not_empty(choice: object, keyword: str) -> None:
    if isinstance(choice, Mapping | list | tuple) and not choice:
        raise OptionError(f"{keyword} is empty; name at least one output, or leave it out")


def _named(value: object, where: str) -> LikelihoodName:
    for name in LIKELIHOODS:
        if value == name:
            return name
    raise OptionError(f"{where}={value!r}; it is one of {', '.join(repr(name) for name in LIKELIHOODS)}")


def _weight(value: object, where: str) -> float:
    known = real_number(value)
    try:
        # A tensor of one number is one, too.
        number = float(value) if known is None else known  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}={value!r}; give a positive number") from error
    if not 0 < number < float("inf") or isinstance(value, str | bool):
        raise OptionError(
            f"{where}={value!r}; give a positive number (an output that does not matter is left out of "
            "outputs=)"
        )
    return number
