"""What a user did wrong, in one sentence: parameter, value, rule."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input. Commands print the message alone and exit with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean `x`?" for the closest known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean `{matches[0]}`?" if matches else ""


class Stopped(RuntimeError):
    """Work that cannot go on, through no mistake of the user's. Commands print the message and exit with `status`."""

    status = 1


class DamagedSample(Stopped):
    """The bytes of one sample cannot be read or do not match their checksum."""


class SourceGone(DamagedSample):
    """Not one sample: the place that all of them come from can no longer be read. A build stops and can go on."""


class FilteredSample(Stopped):
    """A rule of the reader's leaves this sample out; the message names the rule. No damage: no budget counts it."""
