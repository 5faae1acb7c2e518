"""The modes by name. A new one is a file beside this, a line here and a test."""

from collections.abc import Sequence

from finetune.compatibility import albef, clip_benchmark, open_clip, oscar, uniter, vilt, vsepp
from finetune.compatibility.material import CAPTIONS, Material, Mode, Printed
from finetune.results import AsPrinted
from shards.errors import UserError, nearest

MODES: dict[str, Mode] = {
    "vse++": Mode(
        "similarity", "five captions by position; unstable sort; over folds `rsum` is no RSUM", vsepp.run, CAPTIONS
    ),
    "uniter": Mode("every pair", "half precision; query numbers are counted as places", uniter.run),
    "oscar": Mode("every pair", "five captions by position; 1K is one fixed list; unstable sort", oscar.run, CAPTIONS),
    "albef": Mode("candidates", "all but k stand at -100; the sum over 8 ranks rounds scores together", albef.run),
    "blip": Mode("candidates", "as albef, with the cosine added to the logit", albef.run_blip),
    "vilt": Mode("every pair", "repeated captions dropped; 8 ranks pad the gallery; half precision", vilt.run),
    "open_clip": Mode("similarity", "one caption of each image; unstable sort", open_clip.run),
    "clip_benchmark": Mode("similarity", "features rounded to half precision", clip_benchmark.run),
}


def check_modes(names: Sequence[str], matches: bool, shares: bool, k: int) -> None:
    """Refuses what cannot be run.

    Args:
        matches: Whether the model has a matching head.
        shares: Whether it has a shared space.

    Raises:
        UserError: an unknown mode, or one that needs what the model or the protocol lacks.
    """
    for name in names:
        if name not in MODES:
            raise UserError(f"`--compat` (={name}) must be one of {', '.join(MODES)}{nearest(name, MODES)}")
        if MODES[name].needs == "candidates" and not (matches and k):
            raise UserError(f"`--compat` (={name}) re-ranks: it needs a matching head and `--rerank` above 0")
        if MODES[name].needs == "similarity" and not shares:
            raise UserError(f"`--compat` (={name}) compares embeddings: it needs a shared space, `model.embedding_dim`")


def check_captions(names: Sequence[str], fewest: int) -> None:
    """Refuses modes that count on more captions than the image with the fewest has.

    Raises:
        UserError: they would read another image's captions.
    """
    for name in names:
        if fewest < MODES[name].captions:
            raise UserError(
                f"`--compat` (={name}) counts on {MODES[name].captions} captions of each image; one image has {fewest}"
            )


def asks_whole(names: Sequence[str]) -> bool:
    """Whether a mode reads every image with every text, whatever the folds."""
    return any(MODES[name].needs == "every pair" for name in names)


def run_modes(names: Sequence[str], material: Material) -> list[AsPrinted]:
    """Every mode once, in the order of `names`."""
    return [_labelled(name, MODES[name].run(material)) for name in dict.fromkeys(names)]


def _labelled(name: str, printed: Printed) -> AsPrinted:
    return AsPrinted(
        mode=name, difference=MODES[name].difference, i2t=printed.i2t, t2i=printed.t2i, lines=printed.lines
    )
