"""How typed, frozen configurations are read: YAML files with an explicit `base:`, then `dotted.key=value`.

Precedence, later wins: 1. the defaults of the type; 2. the file named by `base:`, recursively; 3. the file; 4. the
command line.
Unknown keys are fatal.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from shards.errors import UserError, nearest


class Section(BaseModel):
    """A group of settings that cannot be changed after it is read and knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=Section)


def load_config(kind: type[ConfigT], file: str | Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a configuration of type `kind` from `file` and `overrides`.

    Args:
        file: YAML, or None for the defaults; its `base:` is relative to itself.
        overrides: `dotted.key=value`, each value read as YAML.

    Raises:
        UserError: a file that is missing or not YAML, an unknown key, or a value that breaks a rule.
    """
    values = _read_yaml(Path(file), ()) if file else {}
    for override in overrides:
        _apply(values, override)
    return parse_config(kind, values)


def parse_config(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """Validates plain values as `kind`; errors are one sentence each, as in `load_config`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(kind, e) for e in error.errors())) from None


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML; reading it back gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, `above` winning key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise UserError(f"`base` (={path}) leads back to itself")
    if not path.is_file():
        raise UserError(f"`config` (={path}) is not a file")
    try:
        values = yaml.load(path.read_text(), Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"`config` (={path}) is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"`config` (={path}) must hold keys and values, not a {type(values).__name__}")
    base = values.pop("base", None)
    return merge(_read_yaml(path.parent / base, (*seen, path)), values) if base else values


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"`{override}` must have the form dotted.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"`{dotted}` (={text}) is not a YAML value") from None
    *parents, last = dotted.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string; people write learning rates that way. And of equal keys the last would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"`{twice[0]}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _explain(kind: type[BaseModel], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"`{name}` is not a known key{_suggest(kind, location)}"
    if error["type"] == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    return f"`{name}` (={error['input']!r}) is refused: {error['msg'][0].lower()}{error['msg'][1:]}"


def _suggest(kind: type[BaseModel], location: list[str]) -> str:
    section: Any = kind
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    prefix = "".join(f"{part}." for part in location[:-1])
    return nearest(prefix + location[-1], [prefix + known for known in section.model_fields])
