"""Several corpora as one endless sequence: which source a position draws from, and which of its samples.

    position -> Schedule -> (source, turn) -> Order of that source -> sample index, epoch of that source

The schedule repeats a period in which source i has `shares[i]` turns, spread evenly (Tijdeman, "The chairman
assignment problem", 1980): after any number of positions no source is a whole turn ahead of or behind its share. Turn t
of a source is position t of the source's own endless order, so each sample is used exactly once per epoch of its
source. Nothing grows with the position. Shapes: N positions, P turns of a period, S sources.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from shards.errors import UserError
from shards.order import Order
from shards.sources.base import Source, shard_sizes

PERIOD = 2**16
"""Longest period; weights that need more are rounded to its fractions."""


class Turn(NamedTuple):
    """The sample due at a position: number of the source, and the position in that source's own endless order."""

    source: int
    turn: int


class Schedule:
    """Position -> (source, turn), from weights alone.

    Raises:
        UserError: a weight that is not positive and finite, or too small beside the others.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.shares = _shares(weights)
        self.period = sum(self.shares)
        self.source_P = _spread(np.array(self.shares, dtype=np.int64))
        self.before_P = np.empty(self.period, dtype=np.int64)
        for source, share in enumerate(self.shares):
            self.before_P[self.source_P == source] = np.arange(share)

    def turns(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources_N and turns_N, int64, of any positions."""
        positions_N = np.asarray(positions, dtype=np.int64)
        periods_N, places_N = np.divmod(positions_N, self.period)
        sources_N = self.source_P[places_N]
        return sources_N, periods_N * np.array(self.shares)[sources_N] + self.before_P[places_N]


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole turns per period, in the ratio of the weights: exact where that takes at most `PERIOD` turns."""
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"`weight` (={weight}) must be positive and finite")
    exact = [Fraction(str(weight)) for weight in weights]
    scaled = [fraction * math.lcm(*(f.denominator for f in exact)) for fraction in exact]
    whole = [int(fraction / math.gcd(*(int(s) for s in scaled))) for fraction in scaled]
    if sum(whole) <= PERIOD:
        return tuple(whole)
    quotas = [fraction * PERIOD / sum(exact) for fraction in exact]
    rounded = [int(quota) for quota in quotas]
    largest_remainder = sorted(range(len(quotas)), key=lambda i: (rounded[i] - quotas[i], i))
    for i in largest_remainder[: PERIOD - sum(rounded)]:
        rounded[i] += 1
    if 0 in rounded:
        weight = weights[rounded.index(0)]
        raise UserError(f"`weight` (={weight}) must be at least 1/{PERIOD} of the sum of the weights")
    return tuple(rounded)


def _spread(shares_S: np.ndarray) -> np.ndarray:
    """Source of each turn of a period, int64 [P]: of the sources that are due, the one with the nearest deadline."""
    sources, period = len(shares_S), int(shares_S.sum())
    if sources == 1:
        return np.zeros(period, dtype=np.int64)
    debt_S = np.zeros(sources, dtype=np.int64)
    spread_P = np.empty(period, dtype=np.int64)
    for turn in range(period):
        debt_S += shares_S
        deadline_S = ((2 * sources - 3) * period - (2 * sources - 2) * debt_S) / shares_S
        deadline_S[(2 * sources - 2) * debt_S < period] = np.inf  # not due yet
        spread_P[turn] = chosen = int(np.argmin(deadline_S))
        debt_S[chosen] -= period
    return spread_P


class Mixture:
    """Sources with weights, and the order of each. An epoch is as many positions as all sources have samples together.

    Raises:
        UserError: no source, an empty one, one that is named twice, weights that cannot be used.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]], seed: int) -> None:
        if not sources:
            raise UserError("`sources` must name at least one")
        self.sources = [source for source, _ in sources]
        for source in self.sources:
            if not len(source):
                raise UserError(f"`sources` (={source.name}) must hold at least one sample")
        self.fingerprints = [source.fingerprint() for source in self.sources]
        for number, fingerprint in enumerate(self.fingerprints):
            if fingerprint in self.fingerprints[:number]:
                name = self.sources[number].name
                raise UserError(
                    f"`sources` (={name}) must be named once, with one weight: another holds the same samples"
                )
        self.schedule = Schedule([weight for _, weight in sources])
        self.orders = [
            Order(shard_sizes(source), seed, fingerprint)
            for source, fingerprint in zip(self.sources, self.fingerprints, strict=True)
        ]

    @cached_property
    def samples(self) -> int:
        """Positions of an epoch."""
        return sum(order.samples for order in self.orders)

    def due(self, positions: Sequence[int] | np.ndarray) -> list[tuple[Turn, int]]:
        """The turn and the sample index of each of any positions; for many at once it takes much less time each."""
        sources_N, turns_N = self.schedule.turns(positions)
        indices_N = np.empty_like(turns_N)
        for source in np.unique(sources_N):
            chosen_N = sources_N == source
            indices_N[chosen_N] = self.orders[source].indices(turns_N[chosen_N])
        return list(zip(map(Turn, sources_N.tolist(), turns_N.tolist()), indices_N.tolist(), strict=True))

    def epoch(self, turn: Turn) -> int:
        """How often the source of `turn` has been used up before it."""
        return turn.turn // self.orders[turn.source].samples

    def substitute(self, turn: Turn, attempt: int) -> int:
        """Index of the sample that is due `attempt` turns later in the same epoch of the same source, cyclically."""
        order = self.orders[turn.source]
        epoch, offset = divmod(turn.turn, order.samples)
        other = epoch * order.samples + (offset + attempt) % order.samples
        return int(order.indices(range(other, other + 1))[0])

    def describe(self) -> list[dict[str, Any]]:
        """What decides the sequence, one entry per source; JSON values."""
        entries = zip(self.sources, self.fingerprints, self.schedule.shares, strict=True)
        return [{"name": source.name, "fingerprint": mark, "share": share} for source, mark, share in entries]


def difference(mine: Sequence[dict[str, Any]], saved: Sequence[dict[str, Any]]) -> str:
    """The first difference between two descriptions as "`sources` (=a, share 1 of 3) must be ...", or nothing.

    Names do not count: a folder may have moved.
    """
    if len(mine) != len(saved):
        return f"`sources` (={_listed(mine)}) must be {_listed(saved)}"
    totals = sum(entry["share"] for entry in mine), sum(entry["share"] for entry in saved)
    for ours, theirs in zip(mine, saved, strict=True):
        if ours["fingerprint"] != theirs["fingerprint"]:
            marks = ours["fingerprint"][:16], theirs["fingerprint"][:16]
            return (
                f"`sources` (={ours['name']}, fingerprint {marks[0]}) must be {theirs['name']}, fingerprint {marks[1]}"
            )
        if (ours["share"], totals[0]) != (theirs["share"], totals[1]):
            shares = f"{ours['share']}/{totals[0]}", f"{theirs['share']}/{totals[1]}"
            return f"`weight` of {ours['name']} (={shares[0]} of the sum) must be {shares[1]}"
    return ""


def _listed(entries: Sequence[dict[str, Any]]) -> str:
    return ", ".join(entry["name"] for entry in entries) or "nothing"
