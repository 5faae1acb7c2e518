"""Where encoders and tokenizers lie: a local path, or a folder inside an installed Python package."""

import importlib.util
from pathlib import Path

from shards.errors import UserError


def locate(parameter: str, place: str) -> Path:
    """Turns `place` into an existing path.

    Args:
        parameter: The dotted name of the setting, for the message.
        place: A path, or `package:NAME/FOLDER`.

    Raises:
        UserError: nothing lies there.
    """
    if not place:
        raise UserError(f"`{parameter}` is not set")
    path = _inside_package(parameter, place) if place.startswith("package:") else Path(place).expanduser()
    if not path.exists():
        raise UserError(f"`{parameter}` (={place}) does not exist")
    return path


def _inside_package(parameter: str, place: str) -> Path:
    name, _, inner = place.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"`{parameter}` (={place}) names a Python package that is not installed: `{name}`")
    return Path(spec.submodule_search_locations[0]) / inner
