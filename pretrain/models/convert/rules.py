"""The language of name tables: which tensor of another code becomes which of ours, and how.

    theirs --Rule--> ours        a table reads the same both ways: `Table.reversed`

In patterns `{n}` stands for a number, `{kind}` for `weight` or `bias`, `{rest}` for the end of a name.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from shards.errors import UserError

How = Literal[
    "copy",
    "stack",
    "split",
    "transpose",
    "negate",
    "log",
    "share",
    "positions",
    "second",
    "and_second",
    "type",
    "match",
    "exp",
    "agree",
    "grid",
    "type_rows",
    "odds",
    "with_type",
    "kinds",
]
SHOWN = 3


@dataclass(frozen=True)
class Rule:
    """Patterns of one or several tensors on each side; `how` names an entry of `OPERATIONS`.

    Of two rules for one of our tensors the first counts: published files name tied tensors twice.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    how: How = "copy"


@dataclass(frozen=True)
class Step:
    """A rule with its placeholders filled in."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    how: How


@dataclass(frozen=True)
class Table:
    """All that is known of one architecture.

    Attributes:
        ignored: Patterns of theirs that hold nothing to keep: counters, tied copies, queues.
        fresh: Patterns of ours that start anew, because the other code has no such thing.
        zeros: Names of ours that are added to something and have no counterpart.
        back: Rules of the way back that come before the reversed ones: what theirs lacks may go elsewhere.
        tied: Names of theirs that hold the same matrix, or one that only the first rule can place.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    back: tuple[Rule, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()

    def steps(self, names: Iterable[str]) -> list[Step]:
        """What the rules make of tensors with these names."""
        there, made = set(names), set[str]()
        steps = []
        for rule in self.rules:
            for name in sorted(there):
                step = _filled(rule, name)
                if step and there.issuperset(step.theirs) and made.isdisjoint(step.ours):
                    steps.append(step)
                    made.update(step.ours)
        return steps

    def reversed(self) -> "Table":
        """From ours to theirs.

        Raises:
            KeyError: a rule that has no way back.
        """
        rules = (Rule(rule.ours, rule.theirs, INVERSE[rule.how]) for rule in self.rules)
        return Table((*self.back, *rules), ignored=self.fresh, fresh=self.ignored)


def modules(theirs: str, ours: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for weights and biases of modules, by their name behind `theirs` and ours behind `ours`."""
    return tuple(Rule((f"{theirs}{a}.{{kind}}",), (f"{ours}{b}.{{kind}}",)) for a, b in names.items())


def convert(
    table: Table, given: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], place: str, allowed: Collection[str]
) -> dict[str, Tensor]:
    """The wanted tensors that `table` makes of the given ones.

    Args:
        wanted: The shapes of the other side.
        place: What the given tensors are, for messages: "`from` (=PATH)".
        allowed: Names, with `*` for any end, that may be left over or missing.

    Raises:
        UserError: tensors that have no place, that are missing, or of another shape; or a name in `allowed` that is
            none of them.
    """
    steps = table.steps(given)
    made: dict[str, Tensor] = {}
    for step in steps:
        shapes = [wanted.get(name) for name in step.ours]
        made |= zip(step.ours, OPERATIONS[step.how]([given[name] for name in step.theirs], shapes), strict=True)
    read = {name for step in steps if not wanted.keys().isdisjoint(step.ours) for name in step.theirs}
    left = [name for name in given if name not in read and not _any(table.ignored, name)]
    _check_tied(table, given, read, place)
    made |= {name: torch.zeros(wanted[name]) for name in table.zeros if name in wanted}
    missing = [name for name in wanted if name not in made and not _any(table.fresh, name)]
    _refuse(place, left, missing, allowed)
    return {name: _fitted(name, tensor, wanted[name], place) for name, tensor in made.items() if name in wanted}


def _check_tied(table: Table, given: Mapping[str, Tensor], read: Collection[str], place: str) -> None:
    for name, other in table.tied:
        if name in given and other in given and name not in read and not torch.equal(given[name], given[other]):
            raise UserError(
                f"{place} does not fit: `{name}` is a matrix of its own, so `objectives.mlm.tied` must be false"
            )


def _refuse(place: str, left: list[str], missing: list[str], allowed: Collection[str]) -> None:
    if idle := [name for name in allowed if not any(fnmatchcase(one, name) for one in (*left, *missing))]:
        raise UserError(f"`allow` (={idle[0]}) is the name of no tensor that is left over or missing")
    left, missing = ([n for n in names if not any(fnmatchcase(n, a) for a in allowed)] for names in (left, missing))
    if left or missing:
        parts = [f"{len(left)} tensors have no place ({_few(left)})"] if left else []
        parts += [f"{len(missing)} are missing ({_few(missing)})"] if missing else []
        raise UserError(f"{place} does not fit: {' and '.join(parts)}; `allow` by name what may be so")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _fitted(name: str, tensor: Tensor, shape: torch.Size, place: str) -> Tensor:
    """In the wanted shape, from which it may differ by dimensions of size 1 alone."""
    if [size for size in tensor.shape if size != 1] != [size for size in shape if size != 1]:
        raise UserError(f"{place} does not fit: `{name}` must have shape {list(shape)}, not {list(tensor.shape)}")
    return tensor.reshape(shape).contiguous().clone()


_HOLES = {"{n}": r"(?P<n>\d+)", "{kind}": "(?P<kind>weight|bias)", "{rest}": "(?P<rest>.+)"}


def _matches(pattern: str, name: str) -> re.Match[str] | None:
    expression = re.escape(pattern)
    for hole, meaning in _HOLES.items():
        expression = expression.replace(re.escape(hole), meaning)
    return re.fullmatch(expression, name)


def _any(patterns: Iterable[str], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _filled(rule: Rule, name: str) -> Step | None:
    """The rule for the tensor `name`, which its first pattern must match."""
    if not name.startswith(rule.theirs[0].partition("{")[0]):  # of a thousand names and rules few come this far
        return None
    match = _matches(rule.theirs[0], name)
    if match is None:
        return None
    theirs, ours = (tuple(p.format(**match.groupdict()) for p in side) for side in (rule.theirs, rule.ours))
    return Step(theirs, ours, rule.how)


Shapes = Sequence[torch.Size | None]
Operation = Callable[[list[Tensor], Shapes], list[Tensor]]


def _positions(tensors: list[Tensor], _: Shapes) -> list[Tensor]:
    """A class token [1, 1, D] and positions [1, 1 + side * side, D] -> both of the class token, and the grid's."""
    token, table = tensors
    side = int((table.shape[1] - 1) ** 0.5)
    return [token + table[:, :1], table[:, 1:].transpose(1, 2).unflatten(2, (side, side))]


def _grid(tensors: list[Tensor], _: Shapes) -> list[Tensor]:
    """The way back, with a class token whose position is 0."""
    token, grid = tensors
    return [token, torch.cat([torch.zeros_like(token), grid.flatten(2).transpose(1, 2)], 1)]


def _type_rows(tensors: list[Tensor], shapes: Shapes) -> list[Tensor]:
    """One vector -> row 1 of a table of types; its table of positions is 0."""
    types, positions = (torch.zeros(shape or (2, len(tensors[0]))) for shape in shapes)
    types[1] = tensors[0]
    return [types, positions]


def _match(tensors: list[Tensor], _: Shapes) -> list[Tensor]:
    """A head with one logit -> one with two, of which the first is always 0."""
    return [torch.cat([torch.zeros_like(tensors[0]), tensors[0]])]


def _kinds(tensors: list[Tensor], _: Shapes) -> list[Tensor]:
    """A head for clean, wrong tags, wrong caption -> clean, wrong caption, wrong tags; one for two classes stays."""
    [head] = tensors
    return [head[[0, 2, 1]] if len(head) == 3 else head]


OPERATIONS: Mapping[How, Operation] = {
    "copy": lambda tensors, _: tensors,
    "stack": lambda tensors, _: [torch.cat(tensors)],
    "split": lambda tensors, shapes: list(tensors[0].chunk(len(shapes))),
    "transpose": lambda tensors, _: [tensors[0].T],
    "negate": lambda tensors, _: [-tensors[0]],
    "log": lambda tensors, _: [tensors[0].log()],
    "exp": lambda tensors, _: [tensors[0].exp()],
    "share": lambda tensors, shapes: tensors * len(shapes),
    "agree": lambda tensors, _: tensors[:1],  # ours share one tensor under several names
    "positions": _positions,
    "grid": _grid,
    "type": lambda tensors, _: [tensors[0][1] + tensors[1][0]],  # the image's type and its only position (VisualBERT)
    "type_rows": _type_rows,
    "second": lambda tensors, _: [tensors[0][1]],
    "and_second": lambda tensors, _: [tensors[0], tensors[0][1]],
    "match": _match,
    "odds": lambda tensors, _: [tensors[0][1:] - tensors[0][:1]],
    "with_type": lambda tensors, _: [tensors[0] + tensors[1][:1]],  # a type that all tokens have, into the positions
    "kinds": _kinds,
}
"""The tensors of one side and the wanted shapes of those on the other -> those."""

INVERSE: Mapping[How, How] = {
    "copy": "copy",
    "stack": "split",
    "split": "stack",
    "transpose": "transpose",
    "negate": "negate",
    "log": "exp",
    "share": "agree",
    "positions": "grid",
    "type": "type_rows",
    "match": "odds",
    "kinds": "kinds",
}
