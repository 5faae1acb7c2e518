"""The published systems that ship as configurations: what each is made of, and how large.

    configs/systems/*.yaml -> PretrainConfig with `system` -> the task on the meta device -> a row

Where each setting is from is said by the comments behind it (`pretrain.sources`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import PretrainConfig
from pretrain.data.labels import RegionVocabulary
from pretrain.models.config import VisionConfig
from pretrain.settings import load_config, parse_config
from pretrain.sources import TAGS, read_sources
from pretrain.task import Task, outline
from shards.errors import UserError

SCENE_FEATURES = 192
"""Numbers per region of the generated scenes."""
PARTS = {"all": ("model.", "objectives."), "model": ("model.",)}
"""What `SystemConfig.counts` covers, as prefixes of parameter names."""


@dataclass(frozen=True)
class SystemRow:
    """One published system as this software builds it.

    Attributes:
        parameters: Of the model and its heads, momentum copies left out.
        stated: What `SystemConfig.parameters` says, and `counted`, the same part here.
        sources: The tag of each setting (`pretrain.sources`), by dotted name.
    """

    name: str
    stream: str
    trunk: str
    inputs: str
    objectives: list[str]
    parameters: int
    stated: float
    counted: int
    held_by: str
    sources: dict[str, str | None]

    @property
    def state(self) -> str:
        counts = Counter(self.sources.values())
        told = ", ".join(f"{counts[tag]} {tag}" for tag in TAGS if counts[tag])
        return f"works: {self.held_by}; of {len(self.sources)} settings {told}"


def find_systems(folder: Path) -> list[Path]:
    """The configurations in `folder`, in alphabetical order.

    Raises:
        UserError: there are none.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"`folder` (={folder}) holds no *.yaml")
    return files


def read_system(file: Path) -> SystemRow:
    """Builds the system without memory and counts it.

    Raises:
        UserError: a configuration without `system`, or one that cannot be built.
    """
    config = load_config(PretrainConfig, file)
    if config.system is None:
        raise UserError(f"`system` is not set in {file}")
    task = outline(config.model, config.objectives, config.system.vocabulary)
    return SystemRow(
        name=config.system.name,
        stream=config.system.stream,
        trunk=config.model.fusion.trunk,
        inputs=_inputs(config.model.vision),
        objectives=list(config.objectives.chosen),
        parameters=count(task, "all"),
        stated=config.system.parameters,
        counted=count(task, config.system.counts),
        held_by=config.system.held_by,
        sources=read_sources(file),
    )


def count(task: Task, part: str) -> int:
    """Parameters of a part of the task, as `SystemConfig.counts` names it."""
    named = {name: p.numel() for name, p in task.named_parameters() if not name.startswith("momentum.")}
    return sum(number for name, number in named.items() if name.startswith(PARTS[part]))


def _inputs(vision: VisionConfig) -> str:
    if vision.region:
        return "regions"
    if vision.patch:
        return "patches"
    return f"{vision.name} pooled" if vision.tokens == "pooled" else vision.name


def table(rows: Sequence[SystemRow]) -> str:
    """The rows for people, one system after the other."""
    lines = []
    for row in rows:
        size = f"{row.parameters / 1e6:.1f}M parameters"
        size += f" (stated {row.stated / 1e6:.1f}M, the same part here {row.counted / 1e6:.1f}M)"
        lines.append(f"{row.name}: {row.stream}-stream, {row.trunk}, {row.inputs}, {' + '.join(row.objectives)}")
        lines.append(f"    {size}; {row.state}")
    return "\n".join(lines)


def shrink(config: PretrainConfig, labels: Path) -> PretrainConfig:
    """The same composition and objectives small enough to train on generated scenes within a minute on two cores.

    Args:
        labels: The scenes' names of classes and attributes (`pretrain labels`).
    """
    known = RegionVocabulary.read(str(labels))
    classes, attributes = len(known.labels), len(known.attributes)
    values = config.model_dump(mode="json")
    values["system"] = None
    model = values["model"]
    model["image_size"] = 64
    model["embedding_dim"] = model["embedding_dim"] and 16
    model["image_projection"] = True  # small towers have widths of their own
    if model["projection"]:
        model["projection"] |= {"hidden": 32}
    _tiny_text(model["text"])
    _tiny_vision(model["vision"], classes)
    _tiny_fusion(model["fusion"])
    values["objectives"] |= {"policy": "sum", "mix": {}}
    for name, names in (("mrc", classes), ("mra", attributes)):
        if values["objectives"][name]:
            values["objectives"][name]["classes"] = names
    if values["objectives"]["itc"]:
        values["objectives"]["itc"]["queue"] = min(values["objectives"]["itc"]["queue"], 16)
    if values["objectives"]["momentum"]:  # towers as slow as the published ones would still be random at the end
        values["objectives"]["momentum"] |= {"decay": 0.9}
    if values["data"]["regions"]:
        values["data"]["regions"] |= {"labels": str(labels)}
        values["data"]["regions"]["classes"] = values["data"]["regions"]["classes"] and classes
    values["data"] |= {"global_batch": 16, "max_tokens": 40}
    if values["data"]["image_shape"]:
        values["data"]["image_shape"] = {"shortest_edge": 64, "longest_edge": 96, "multiple": 16}
    values["optim"] |= {"lr": 2e-3, "final_lr": 0.0, "warmup_steps": 20, "multipliers": {}}
    values["run"] |= {"steps": 300, "save_every": 300}
    return parse_config(PretrainConfig, values)


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 66}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("{}", {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}),
    "deit": ("{}", {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}),
    "swin": ("{}", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
}
"""Family of a timm name -> the small name and its options; others become a small ResNet."""


def _tiny_text(text: dict[str, Any]) -> None:
    layers = min(text["options"].get("num_hidden_layers", 12), 2)
    calm = {"attention_dropout": 0.0} if text["kind"] == "clip" else CALM
    text["options"] |= SMALL | calm | {"num_hidden_layers": layers}
    text["width"] = text["width"] and 32
    _tiny_blocks(text["blocks"])


def _tiny_vision(vision: dict[str, Any], classes: int) -> None:
    if vision["region"]:
        vision["region"] |= {"features": SCENE_FEATURES, "width": 32, "dropout": 0.0}
        vision["region"]["classes"] = vision["region"]["classes"] and classes
    elif vision["patch"]:
        vision["patch"] |= {"size": 16, "width": 32, "dropout": 0.0}
    else:
        small = ("resnet10t", {"channels": [8, 16, 24, 32], "output_stride": 16})
        name, vision["options"] = BACKBONES.get(vision["name"].split("_")[0], small)
        vision["name"], vision["width"] = name.format(vision["name"]), vision["width"] and 32
        vision["last_conv"] = True
    _tiny_blocks(vision["blocks"])


def _tiny_blocks(blocks: dict[str, Any] | None) -> None:
    if blocks:
        blocks |= {"depth": 1, "heads": 2, "hidden": 64, "dropout": 0.0}


def _tiny_fusion(fusion: dict[str, Any]) -> None:
    fusion |= {"depth": 2, "heads": 2, "hidden": 64, "dropout": 0.0}
    fusion["decoder_depth"] = fusion["decoder_depth"] and 1
    fusion["pooled_width"] = fusion["pooled_width"] and 32
    co = fusion["co_attention"]
    if co["placement"]:
        co["placement"] = [item.partition("*")[0] for item in co["placement"][:5]]
    for name, small in (("width", 32), ("heads", 2), ("image_heads", 2), ("image_hidden", 64)):
        co[name] = co[name] and small
