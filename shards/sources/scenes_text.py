"""Captions of a scene: five of eight templates, each true and each naming every object by colour and shape.

Texture, size and relations are told by some templates only, as in texts that people write.
"""

from collections.abc import Callable

import numpy as np

from shards.sources.scenes_layout import Scene, Thing

CAPTIONS = 5
Namer = Callable[[Thing], str]

_SYNONYMS = {
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "circle": ("disc",),
    "square": ("box",),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "diamond": ("rhombus",),
    "purple": ("violet",),
}
_TEXTURE_SYNONYMS = {
    "solid": "plain {}",
    "striped": "{} with stripes",
    "dotted": "spotted {}",
    "checked": "chequered {}",
}
_BETWEEN = {"row": ("to the left of", "to the right of"), "column": ("above", "below")}
_ORDER = {"row": ("from left to right", "from right to left"), "column": ("from top to bottom", "from bottom to top")}
_SIDE = {"above": "above", "below": "below", "left": "to the left of", "right": "to the right of"}
_COUNTS = {2: "two", 3: "three"}


def captions(rng: np.random.Generator, scene: Scene) -> tuple[str, ...]:
    """Five differently worded texts, lower case, at most thirty words each."""
    templates = rng.permutation(len(_TEMPLATES))[:CAPTIONS]
    return tuple(_TEMPLATES[template](rng, scene) for template in templates)


def _full_location(rng: np.random.Generator, scene: Scene) -> str:
    return _located(scene, lambda thing: _article(_full(thing)))


def _short_location(rng: np.random.Generator, scene: Scene) -> str:
    return _located(scene, lambda thing: _article(_short(thing)), verb="is")


def _inverse_location(rng: np.random.Generator, scene: Scene) -> str:
    """The same fact told from the other end."""
    return _located(scene, lambda thing: _article(_textured(thing)), verb="is", inverse=True)


def _synonym_location(rng: np.random.Generator, scene: Scene) -> str:
    verb = ("sits", "stands", "lies", "is placed")[rng.integers(4)]
    return _located(scene, lambda thing: _article(_synonymous(rng, thing)), verb=verb)


def _tags(rng: np.random.Generator, scene: Scene) -> str:
    name = (_short, _textured, _full)[rng.integers(3)]
    return ", ".join(name(scene.things[i]) for i in rng.permutation(len(scene.things)))


def _count(rng: np.random.Generator, scene: Scene) -> str:
    count = _COUNTS[len(scene.things)]
    shapes = {thing.shape for thing in scene.things}
    if len(shapes) == 1:
        return f"{count} {_plural(shapes.pop())}, {_list(['one ' + thing.colour for thing in scene.things])}"
    noun = ("shapes", "objects", "things")[rng.integers(3)]
    return f"there are {count} {noun}: {_list([_article(_short(thing)) for thing in scene.things])}"


def _attributes(rng: np.random.Generator, scene: Scene) -> str:
    clauses = [f"the {_short(thing)} is {thing.size} and {thing.texture}" for thing in scene.things]
    return _list([clauses[i] for i in rng.permutation(len(clauses))])


def _picture(rng: np.random.Generator, scene: Scene) -> str:
    opening = ("a picture of", "an image with", "a drawing of")[rng.integers(3)]
    return f"{opening} {_list([_article(_textured(thing)) for thing in scene.things])}"


_TEMPLATES = (
    _full_location,
    _short_location,
    _inverse_location,
    _synonym_location,
    _tags,
    _count,
    _attributes,
    _picture,
)


def _located(scene: Scene, name: Namer, verb: str = "", inverse: bool = False) -> str:
    """Names all things and where they are; `inverse` starts from the last."""
    names = [name(thing) for thing in scene.things]
    verb = f" {verb}" if verb else ""
    if scene.third == "line":
        return f"{_list(names[::-1] if inverse else names)} {_ORDER[scene.axis][inverse]}"
    first, second = (names[1], names[0]) if inverse else (names[0], names[1])
    pair = f"{first}{verb} {_BETWEEN[scene.axis][inverse]} {second}"
    if not scene.third:
        return pair
    side = _SIDE[scene.third]
    return f"{names[2]}{verb} {side} {names[0]} and {names[1]}" if inverse else f"{pair}, with {names[2]} {side} them"


def _short(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _textured(thing: Thing) -> str:
    return _short(thing) if thing.texture == "solid" else f"{thing.texture} {_short(thing)}"


def _full(thing: Thing) -> str:
    if thing.texture == "solid":
        return f"{thing.size} solid {_short(thing)}"
    return f"{thing.size} {thing.colour} {thing.texture} {thing.shape}"


def _synonymous(rng: np.random.Generator, thing: Thing) -> str:
    colour, shape = _synonym(rng, thing.colour), _synonym(rng, thing.shape)
    return f"{_synonym(rng, thing.size)} {_TEXTURE_SYNONYMS[thing.texture].format(f'{colour} {shape}')}"


def _synonym(rng: np.random.Generator, word: str) -> str:
    choices = _SYNONYMS.get(word, (word,))
    return choices[rng.integers(len(choices))]


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _list(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
