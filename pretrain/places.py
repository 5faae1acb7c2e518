"""Where encoders and tokenizers lie: a local path, a folder inside an installed Python package, or a hub's repository.

A repository is fetched before anything is built (`pretrain.fetching`); here only the cache is looked into.
"""

import importlib.util
from pathlib import Path

from pretrain.hub import cached, hub_place
from shards.errors import UserError

HUB = "hf:"
HUB_FILES = {
    "model.text.weights": ("config.json", "model.safetensors"),
    "model.vision.weights": ("model.safetensors",),
    "model.fusion.weights": ("model.safetensors",),
    "data.tokenizer": ("tokenizer.json",),
}
"""The settings that may name a repository, and the files of it that each reads."""


def locate(parameter: str, place: str) -> Path:
    """Turns `place` into an existing path. Opens no connection.

    Args:
        parameter: The dotted name of the setting, for the message.
        place: A path, `package:NAME/FOLDER`, or for the settings in `HUB_FILES` `hf:USER/NAME[@REVISION]`; of that the
            file, or the folder where the setting reads several.

    Raises:
        UserError: nothing lies there, or the hub's cache lacks it.
    """
    if not place:
        raise UserError(f"`{parameter}` is not set")
    if place.startswith(HUB) and parameter in HUB_FILES:
        return _in_cache(parameter, place)
    path = _inside_package(parameter, place) if place.startswith("package:") else Path(place).expanduser()
    if not path.exists():
        raise UserError(f"`{parameter}` (={place}) does not exist")
    return path


def is_here(parameter: str, place: str) -> bool:
    """Whether `locate` finds it."""
    try:
        locate(parameter, place)
    except UserError:
        return False
    return True


def _in_cache(parameter: str, place: str) -> Path:
    hub, files = hub_place(place, parameter), HUB_FILES[parameter]
    folder = cached(hub, files) if hub else None
    if folder is None:
        raise UserError(
            f"`{parameter}` (={place}) is not in the hub's cache; starting a run or its preflight fetches it"
        )
    return folder / files[0] if len(files) == 1 else folder


def _inside_package(parameter: str, place: str) -> Path:
    name, _, inner = place.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"`{parameter}` (={place}) names a Python package that is not installed: `{name}`")
    return Path(spec.submodule_search_locations[0]) / inner
