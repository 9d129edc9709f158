"""Random numbers that are a function of where they are used: no state, no order of drawing, vectorised.

A *key* names a stream, a *counter* a place in it. Any number can be had alone, so a sample gets the same
numbers whatever batch, rank or process it is met in. The mixer and the stream are SplitMix64 (Steele, Lea,
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). The values are part of every run's
identity: they never change.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = int | npt.NDArray[Any] | np.integer[Any]
U64 = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, made odd: SplitMix64's step
_ROOT = np.uint64(0x5EE12B00F7A92D61)  # where every key starts; arbitrary, and not zero, which the mixer maps to itself


def _as_u64(value: Ints) -> U64:
    """Integers modulo 2^64, of any shape."""
    if isinstance(value, int):
        return np.asarray(value & _MASK, dtype=np.uint64)
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"random numbers are keyed by integers, not by {array.dtype}")
    return array.astype(np.uint64)


@np.errstate(over="ignore")  # arithmetic modulo 2^64 is meant; arrays wrap silently, numpy scalars would warn
def mix64(x: U64) -> U64:
    """SplitMix64's finaliser (David Stafford's variant 13): a bijection of 64-bit words in which every input
    bit turns every output bit with probability close to one half. Any shape, dtype uint64."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@np.errstate(over="ignore")
def derive_key(*parts: Ints) -> U64:
    """A key from integers or integer arrays, broadcast against each other; uint64 of the broadcast shape.

    The parts are absorbed one after the other, so their order and number matter: `derive_key(1, 2)`,
    `derive_key(2, 1)` and `derive_key(1, 2, 0)` are unrelated. Negative numbers are taken modulo 2^64.
    """
    key = np.asarray(_ROOT)
    for part in parts:
        key = mix64(key ^ mix64(_as_u64(part) + _GOLDEN))
    return key


@np.errstate(over="ignore")
def uniform(key: U64, counter: Ints) -> npt.NDArray[np.float64]:
    """Number `counter` of the stream `key`: float64 in [0, 1), multiples of 2^-53; shapes broadcast."""
    bits = mix64(key + (_as_u64(counter) + np.uint64(1)) * _GOLDEN)
    drawn: npt.NDArray[np.float64] = np.multiply(bits >> np.uint64(11), 2.0**-53, dtype=np.float64)
    return drawn
