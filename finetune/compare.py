"""Which of two checkpoints is better, and could it be chance? A paired bootstrap over the images both were asked about.

Both results must come from the same pairs by the same protocol; then every draw of images meets both systems, and what
is hard for both cancels out: the interval of the difference is much narrower than the two intervals suggest.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.bootstrap import DRAWS, NAMES, Interval, draws, percentiles
from finetune.query_ranks import QueryRanks, read_ranks
from finetune.results import Results, read_results
from shards.errors import UserError

TITLES = dict(
    zip(NAMES, [f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)] + ["RSUM"], strict=True),
)


@dataclass(frozen=True)
class Difference:
    """One figure of both; `difference` is the second minus the first, with its 95 % interval and two-sided p."""

    name: str
    first: float
    second: float
    difference: float
    interval: Interval
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two results side by side.

    Attributes:
        only_first, only_second: Queries (images, texts) that only one of them answers at place 1.
        warning: What else differs between the two; empty where nothing does.
    """

    first: str
    second: str
    differences: list[Difference]
    only_first: tuple[int, int]
    only_second: tuple[int, int]
    warning: str

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare_files(first: Path, second: Path, any_rerank: bool = False) -> Comparison:
    """Compares two results files.

    Args:
        any_rerank: Allow another k or matching score: then systems are compared, not checkpoints alone.

    Raises:
        UserError: a file that is missing or damaged, or results that cannot be paired.
    """
    one, two = read_results(first), read_results(second)
    check_pair(one, two, any_rerank)
    return compare(one, read_ranks(first, one.ranks), two, read_ranks(second, two.ranks))


def check_pair(first: Results, second: Results, any_rerank: bool = False) -> None:
    """Raises UserError where the same query would not mean the same question."""
    if first.data.digest != second.data.digest:
        digests = f"{first.data.digest[:12]} and {second.data.digest[:12]}"
        raise UserError(f"`data.digest` must be the same in both results; they have {digests}")
    free = {"rerank", "score"} if any_rerank else set()
    one, two = first.protocol.model_dump(exclude=free), second.protocol.model_dump(exclude=free)
    if different := [name for name in one if one[name] != two[name]]:
        name = different[0]
        hint = "; compare them all the same with --any-rerank" if name in ("rerank", "score") else ""
        raise UserError(
            f"`protocol.{name}` must be the same in both results; they have {one[name]} and {two[name]}{hint}"
        )


def compare(first: Results, ranks_1: QueryRanks, second: Results, ranks_2: QueryRanks) -> Comparison:
    """Compares results that `check_pair` let pass."""
    folds = first.protocol.folds
    apart = draws(ranks_2, folds) - draws(ranks_1, folds)
    differences = [
        Difference(TITLES[name], a, b, b - a, percentiles(column), two_sided(column))
        for name, a, b, column in zip(NAMES, first.figures, second.figures, apart.T, strict=True)
    ]
    top = [(r.i2t.pessimistic == 1, r.t2i.pessimistic == 1) for r in (ranks_1, ranks_2)]
    only_1 = tuple(int(np.sum(a & ~b)) for a, b in zip(top[0], top[1], strict=True))
    only_2 = tuple(int(np.sum(b & ~a)) for a, b in zip(top[0], top[1], strict=True))
    return Comparison(
        first.name, second.name, differences, (only_1[0], only_1[1]), (only_2[0], only_2[1]), _warning(first, second)
    )


def two_sided(apart: np.ndarray) -> float:
    """How often a draw falls on the other side of zero, doubled; at least 2 / (draws + 1)."""
    rarer = min(np.count_nonzero(apart <= 0), np.count_nonzero(apart >= 0))
    return min(1.0, 2 * (rarer + 1) / (DRAWS + 1))


def to_text(comparison: Comparison) -> str:
    """A small table for a terminal."""
    head = f"{'':8}  {'first':>7}  {'second':>7}  {'second - first':>14}  {'95 % interval':>16}  {'p':>6}"
    lines = [f"first   {comparison.first}", f"second  {comparison.second}", "", head]
    for d in comparison.differences:
        interval = f"{d.interval[0]:+.1f} to {d.interval[1]:+.1f}"
        lines.append(f"{d.name:8}  {d.first:7.1f}  {d.second:7.1f}  {d.difference:+14.1f}  {interval:>16}  {d.p:6.3f}")
    for number, (what, way) in enumerate((("images", "text"), ("texts", "image"))):
        one, two = comparison.only_first[number], comparison.only_second[number]
        lines.append(f"{what} whose right {way} comes first: {one} only in the first, {two} only in the second")
    return "\n".join([*lines, *([comparison.warning] if comparison.warning else [])])


def _warning(first: Results, second: Results) -> str:
    if first.checkpoint.digest == second.checkpoint.digest:
        same = "both are the same checkpoint"
        return f"note: {same}" if first.protocol == second.protocol else f"note: {same}, re-ranked differently"
    return "" if first.protocol == second.protocol else "note: they were re-ranked differently"
