"""One typed, frozen configuration: YAML files with an explicit `base:`, then `dotted.key=value` from the command line.

Precedence, later wins: 1. the defaults here; 2. the file named by `base:`, recursively; 3. the file; 4. the command
line.
Unknown keys are fatal. The DeepSpeed dictionary is derived from this in `engine.py`.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shards.errors import UserError, nearest

Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of settings that cannot be changed after it is read and knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionConfig(Section):
    """A timm image encoder.

    `name` is a timm model name, `options` are passed to its constructor, and `weights` names where its initial weights
    come from: null for random, a safetensors file, or `timm` for timm's own pretrained tag (needs a network or a filled
    cache).
    """

    name: str = "vit_base_patch16_224"
    options: dict[str, Any] = {}
    weights: str | None = None


class TextConfig(Section):
    """A BERT-shaped text encoder from transformers.

    `options` are fields of `transformers.BertConfig`. `weights` is null for random, else a local folder or
    `package:NAME/FOLDER` for a folder inside an installed Python package; the folder's config.json then gives the
    shape."""

    options: dict[str, Any] = {}
    weights: str | None = None
    pooling: Literal["cls", "mean"] = "cls"


class FusionConfig(Section):
    """How the modalities meet: `text_queries_image` (cross-attention, as in ALBEF) or `none` (dual encoder)."""

    trunk: Literal["text_queries_image", "none"] = "text_queries_image"
    depth: int = Field(6, ge=1)
    heads: int = Field(12, ge=1)
    norm: Literal["pre", "post"] = "post"
    dropout: float = Field(0.0, ge=0, lt=1)


class ModelConfig(Section):
    """trunk x visual embedder x text embedder; `embedding_dim` is the size of the shared space of the two sides."""

    image_size: int = Field(224, ge=16)
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    embedding_dim: int = Field(256, ge=8)


class ITCConfig(Section):
    """Image-text contrast (CLIP, arXiv:2103.00020; multi-positive targets by group)."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.07, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class ITMConfig(Section):
    """Image-text matching with one hard negative image and one such text per pair (ALBEF, arXiv:2107.07651)."""

    weight: float = Field(1.0, gt=0)
    negatives: Literal["hard", "random"] = "hard"


class MLMConfig(Section):
    """Masked language modelling on the fused features (BERT, arXiv:1810.04805: 80 % mask, 10 % random, 10 % kept)."""

    weight: float = Field(1.0, gt=0)
    probability: float = Field(0.15, gt=0, lt=1)


class ObjectivesConfig(Section):
    """Which losses are summed, each with its weight; null leaves one out."""

    itc: ITCConfig | None = None
    itm: ITMConfig | None = None
    mlm: MLMConfig | None = None


class AugmentConfig(Section):
    """Random changes of the training image; all off by default.

    `crop_scale` is the smallest area kept by a random resized crop (1 = no crop); `flip` is for data without left and
    right in its texts; `color` jitters brightness, contrast and saturation by up to this factor; `erase` blanks a
    random box with this probability; `rotate` turns by up to this many degrees.
    """

    crop_scale: float = Field(1.0, gt=0, le=1)
    flip: bool = False
    color: float = Field(0.0, ge=0, lt=1)
    erase: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0, le=180)


class DataConfig(Section):
    """What is read and how it is batched.

    `shards` is a folder that `shards build` wrote. `tokenizer` is a tokenizer.json or a folder or `package:` place that
    holds one. `group_by` names a metadata field: pairs that share its value are each other's positives. `captions`
    `one` draws one caption per image and epoch; `join` shuffles all of them into one text.
    """

    shards: str = ""
    tokenizer: str = ""
    global_batch: int = Field(256, ge=1)
    max_tokens: int = Field(40, ge=4)
    workers: int = Field(0, ge=0)
    group_by: str | None = None
    captions: Literal["one", "join"] = "one"
    augment: AugmentConfig = AugmentConfig()


class OptimConfig(Section):
    """AdamW with linear warm-up and cosine, linear or no decay to `final_lr`."""

    lr: float = Field(1e-4, gt=0)
    final_lr: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 leaves gradients alone.")
    multipliers: dict[str, float] = Field({}, description="Parameter-name prefix -> factor on the learning rate.")
    freeze: list[str] = Field([], description="Parameter-name prefixes that are not trained.")


HOMES = {
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "data.global_batch",
    "gradient_accumulation_steps": "data.global_batch",
    "gradient_clipping": "optim.clip",
    "bf16": "engine.precision",
    "torch_autocast": "engine.precision",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
}
"""DeepSpeed's keys that follow from ours: a second value would win silently."""


class EngineConfig(Section):
    """How DeepSpeed runs the step.

    `precision` `bf16` is autocast: layers multiply in bfloat16; weights, gradients and optimizer stay float32.
    `deepspeed` is merged into DeepSpeed's configuration, for keys this file does not name.
    """

    zero: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    deepspeed: dict[str, Any] = {}

    @field_validator("deepspeed")
    @classmethod
    def _one_home_each(cls, keys: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(HOMES.keys() & keys):
            raise ValueError(f"`engine.deepspeed.{taken[0]}` is derived: set `{HOMES[taken[0]]}`")
        if "stage" in keys.get("zero_optimization", {}):
            raise ValueError("`engine.deepspeed.zero_optimization.stage` is derived: set `engine.zero`")
        return keys


class RunConfig(Section):
    """The run folder and its rhythm, in optimizer steps.

    `resume`: `never` refuses a folder that holds a run, `auto` continues it or starts, `overwrite` deletes it first.
    """

    out: str = ""
    steps: int = Field(1000, ge=0)
    seed: int = 0
    log_every: int = Field(20, ge=1)
    save_every: int = Field(1000, ge=1)
    keep_last: int = Field(2, ge=1)
    resume: Literal["never", "auto", "overwrite"] = "never"


class PretrainConfig(Section):
    """Everything a run is made of."""

    model: ModelConfig = ModelConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _fused_objectives_need_a_trunk(self) -> "PretrainConfig":
        if self.model.fusion.trunk == "none" and (self.objectives.itm or self.objectives.mlm):
            raise ValueError(
                "`objectives.itm` and `objectives.mlm` read fused features, so `model.fusion.trunk` must not be `none`"
            )
        return self


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
