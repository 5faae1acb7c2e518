"""The configuration of a run, one resolved copy; the DeepSpeed dictionary is derived from it in `engine.py`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pretrain.models.config import ModelConfig
from pretrain.objectives.config import ObjectivesConfig
from pretrain.settings import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


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


class RegionsConfig(Section):
    """What is read of the regions that a detector or an author marked.

    Of each image the `most` most confident regions are read, those below `least_score` only if there is no other.
    `labels` is a JSON file that numbers the names of classes and attributes (see `pretrain labels`). `classes` asks for
    the detector's distribution over so many classes. `hide` is the share of regions that masked region modelling hides,
    and with each of them those that cover it by more than `hide_overlap` (null: none).
    """

    most: int = Field(36, ge=1)
    least_score: float = Field(0.0, ge=0, le=1)
    labels: str | None = None
    classes: int = Field(0, ge=0)
    hide: float = Field(0.0, ge=0, lt=1)
    hide_overlap: float | None = Field(None, gt=0, lt=1)


class DataConfig(Section):
    """What is read and how it is batched.

    `shards` is a folder that `shards build` wrote. `tokenizer` is a tokenizer.json or a folder or `package:` place that
    holds one. `group_by` names a metadata field: pairs that share its value are each other's positives. `captions`
    `one` draws one caption per image and epoch; `join` shuffles all of them into one text. `second` is what follows as
    the second segment of the text: the image's `tags` in random order, or another of its captions. `regions` null reads
    none.
    """

    shards: str = ""
    tokenizer: str = ""
    global_batch: int = Field(256, ge=1)
    max_tokens: int = Field(40, ge=4)
    workers: int = Field(0, ge=0)
    group_by: str | None = None
    captions: Literal["one", "join"] = "one"
    second: Literal["tags", "caption"] | None = None
    regions: RegionsConfig | None = None
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
    deepspeed: dict[str, Any] = Field({})

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
    def _regions_are_read(self) -> "PretrainConfig":
        if self.model.vision.region and self.data.regions is None:
            raise ValueError("`model.vision.region` reads regions, so `data.regions` must not be null")
        augment = self.data.augment
        if self.data.regions and (augment.crop_scale < 1 or augment.flip or augment.rotate):
            raise ValueError("`data.augment` may not crop, flip or rotate where `data.regions` is set: boxes stay put")
        return self

    @model_validator(mode="after")
    def _fused_objectives_need_a_trunk(self) -> "PretrainConfig":
        if self.model.fusion.trunk == "none" and (self.objectives.itm or self.objectives.mlm):
            raise ValueError(
                "`objectives.itm` and `objectives.mlm` read fused features, so `model.fusion.trunk` must not be `none`"
            )
        return self
