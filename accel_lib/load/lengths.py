"""How many tokens each request has: a number, a range, an exponential distribution, or numbers that were measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accel_lib.errors import AccelError

Lengths = int | tuple[int, int] | str | Sequence[int]
_FIX = 'pass 64, (32, 96), "exponential:64" (its mean), "exponential:64:160" (and the most), or a list of numbers'


def draw(lengths: Lengths, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` lengths, each at least 1.

    Parameters
    ----------
    lengths
        A number: all are alike. A tuple of two: uniform, both included. ``"exponential:64"``: exponential with that
        mean; ``"exponential:64:160"``: none is longer than 160. Any other sequence is taken in turn. Numbers may also
        be written as text: ``"64"``, ``"32-96"``.

    Raises
    ------
    AccelError
        It is none of these, or holds a length under 1.

    Examples
    --------
    >>> draw((3, 5), 4, np.random.default_rng(0)).tolist()
    [5, 4, 4, 3]
    """
    if isinstance(lengths, str):
        return _parsed(lengths, count, random)
    if isinstance(lengths, tuple) and len(lengths) == 2:
        low, high = _checked(lengths, lengths).tolist()
        if low > high:
            raise _wrong(lengths)
        return random.integers(low, high, count, endpoint=True)
    values = [lengths] if isinstance(lengths, int) else lengths
    return np.resize(_checked(values, lengths), count)


def _parsed(text: str, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    kind, *numbers = text.split(":")
    try:
        if kind == "exponential" and len(numbers) in (1, 2):
            mean, most = float(numbers[0]), float(numbers[1]) if len(numbers) == 2 else np.inf
            if not 1 <= mean <= most or not np.isfinite(mean):
                raise _wrong(text)
            return np.clip(np.rint(random.exponential(mean, count)), 1, most).astype(np.int64)
        ends = [int(each) for each in kind.split("-")]
    except ValueError as error:
        raise _wrong(text) from error
    if numbers or len(ends) > 2:
        raise _wrong(text)
    return draw(ends[0] if len(ends) == 1 else (ends[0], ends[1]), count, random)


def _checked(values: Sequence[int], asked: Lengths) -> NDArray[np.int64]:
    found = np.asarray(values)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu" or found.min() < 1:
        raise _wrong(asked)
    return found.astype(np.int64)


def _wrong(asked: object) -> AccelError:
    return AccelError("These are no numbers of tokens.", seen=repr(asked)[:80], fix=_FIX)
