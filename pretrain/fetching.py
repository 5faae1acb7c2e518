"""The one place where the weights and the tokenizer that a run starts from are downloaded: before anything is built."""

from collections.abc import Sequence
from functools import reduce
from operator import getitem

from pretrain.config import PretrainConfig
from pretrain.hub import fetch, hub_place
from pretrain.models.vision import TIMM, timm_place
from pretrain.places import HUB, HUB_FILES
from pretrain.settings import parse_config
from shards.errors import UserError


def fetch_weights(config: PretrainConfig, tokenizer: bool = True) -> PretrainConfig:
    """Fetches what the settings in `HUB_FILES` name on a hub; the configuration then names the commit of each.

    So ranks that got different commits are found out, and the run's folder says which one it was. `timm` becomes the
    repository that it means. Local places stay as they are, and nothing is asked of the network for them.

    Args:
        tokenizer: Whether `data.tokenizer` is read; a checkpoint to start from has its own.

    Raises:
        UserError: no such repository or revision, or one without the files that are read.
        Stopped: a hub that does not answer, and a cache without the files.
    """
    values = config.model_dump(mode="json")
    if values["model"]["vision"]["weights"] == TIMM:
        values["model"]["vision"]["weights"] = timm_place(config.model.vision.name)
    for parameter, files in HUB_FILES.items():
        *sections, name = parameter.split(".")
        section = reduce(getitem, sections, values)
        wanted = tokenizer or parameter != "data.tokenizer"
        if wanted and str(section[name]).startswith(HUB):
            section[name] = _fetched(parameter, section[name], files)
    return config if values == config.model_dump(mode="json") else parse_config(type(config), values)


def _fetched(parameter: str, place: str, files: Sequence[str]) -> str:
    """The place of the commit that was fetched."""
    hub = hub_place(place, parameter)
    assert hub is not None, "it starts with hf:"
    folder = fetch(hub, files, parameter)
    if lost := [name for name in files if not (folder / name).is_file()]:
        pickles = "; pickles are not read" if lost[0].endswith(".safetensors") else ""
        raise UserError(f"`{parameter}` (={place}) is a repository without {lost[0]}{pickles}")
    return hub.pinned(folder.name)
