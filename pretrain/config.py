"""The configuration of a run, one resolved copy; the DeepSpeed dictionary is derived from it in `engine.py`."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from pretrain.data.augment_config import AugmentConfig
from pretrain.fitting import misfit, missing_regions, no_grid
from pretrain.models.config import ModelConfig
from pretrain.objectives.config import ObjectivesConfig
from pretrain.settings import Section
from pretrain.trackers import TrackerName

Beta = Annotated[float, Field(ge=0, lt=1)]
BETAS = (0.9, 0.98)


class RegionsConfig(Section):
    """What is read of the regions that a detector or an author marked.

    Of each image the `most` most confident regions are read, those below `least_score` only if there is no other.
    `labels` is a JSON file that numbers the names of classes and attributes (see `pretrain labels`). `classes` asks for
    the detector's distribution over so many classes. `hide` is the share of regions that masked region modelling hides,
    and with each of them those that cover it by more than `hide_overlap` (null: none). Of the hidden ones the share
    `keep` is seen as it is (ViLBERT, VL-BERT: 0.1), and in place of the share `replace` a region of another image is
    seen (LXMERT: 0.1 each).
    """

    most: int = Field(36, ge=1)
    least_score: float = Field(0.0, ge=0, le=1)
    labels: str | None = None
    classes: int = Field(0, ge=0)
    hide: float = Field(0.0, ge=0, lt=1)
    hide_overlap: float | None = Field(None, gt=0, lt=1)
    keep: float = Field(0.0, ge=0, le=1)
    replace: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_of_the_hidden(self) -> "RegionsConfig":
        if self.keep + self.replace > 1:
            raise ValueError(
                f"`data.regions.keep` (={self.keep}) and `data.regions.replace` (={self.replace}) must be 1 at most "
                "together"
            )
        return self


class ImageShapeConfig(Section):
    """Images that keep their aspect (ViLT, arXiv:2102.03334; Pixel-BERT, arXiv:2004.00849).

    The shorter edge gets `shortest_edge` pixels, fewer where the longer one would get more than `longest_edge`; then
    both are cut down to multiples of `multiple`.
    """

    shortest_edge: int = Field(384, ge=1)
    longest_edge: int = Field(639, ge=1)
    multiple: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _edges_in_order(self) -> "ImageShapeConfig":
        if not self.multiple <= self.shortest_edge <= self.longest_edge:
            raise ValueError(
                f"`data.image_shape.shortest_edge` (={self.shortest_edge}) must be at least `multiple` "
                f"(={self.multiple}) and at most `longest_edge` (={self.longest_edge})"
            )
        return self


class WeightedShards(Section):
    """One part of a mixture: a folder that `shards build` wrote, or its URL, and its weight beside the others'.

    `selection` is a list of the samples that are kept (`shards.selection`); null keeps all.
    """

    place: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    selection: str | None = None


class DataConfig(Section):
    """What is read and how it is batched.

    `shards` is a folder that `shards build` wrote, its URL, or a list of `WeightedShards`; `cache` is a local folder
    for remote ones, shared by the processes of a node, which grows to `cache_gigabytes`; null reads each sample where
    it lies. `damage_budget` is the largest fraction of an epoch that may be damaged. `tokenizer` is a tokenizer.json or
    a folder, `package:` place or `hf:USER/NAME[@REVISION]` that holds one. `group_by` names a metadata field: pairs
    that share its value are each other's positives. `captions` `one` draws one caption per image and epoch; `join`
    shuffles all into one text. `second` is what follows as the second segment of the text: the image's `tags` in random
    order, or another of its captions. `regions` null reads none. `image_shape` null squashes each image to a square of
    `model.image_size`, else images keep their aspect, are padded to the largest of their batch, and what pads them is
    masked. `keep_gigabytes` of decoded images stay in the memory of each worker; those that `data.augment` crops are
    not kept.
    """

    shards: str | list[WeightedShards] = ""
    cache: str | None = None
    cache_gigabytes: float = Field(100.0, gt=0)
    damage_budget: float = Field(0.01, ge=0, le=1)
    tokenizer: str = ""
    global_batch: int = Field(256, ge=1)
    max_tokens: int = Field(40, ge=4)
    workers: int = Field(0, ge=0)
    group_by: str | None = None
    captions: Literal["one", "join"] = "one"
    second: Literal["tags", "caption"] | None = None
    regions: RegionsConfig | None = None
    keep_gigabytes: float = Field(0.0, ge=0)
    image_shape: ImageShapeConfig | None = None
    augment: AugmentConfig = AugmentConfig()

    @field_validator("shards", mode="before")
    @classmethod
    def _one_place_or_a_mixture(cls, shards: Any) -> str | list[WeightedShards]:
        """Refused here: of a union, pydantic would explain why each member does not fit."""
        if isinstance(shards, str):
            return shards
        try:
            return _MIXTURE.validate_python(shards)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise ValueError(
                f"`data.shards{where}` (={first['input']!r}) is refused: a mixture is a list of "
                f"{{place: FOLDER, weight: NUMBER, selection: FILE}}, with positive weights"
            ) from None


_MIXTURE = TypeAdapter(list[WeightedShards])


class OptimConfig(Section):
    """The optimizer, with linear warm-up and cosine, linear or no decay to `final_lr`.

    `betas` are AdamW's, `momentum` is SGD's and Muon's (null for 0 and 0.95). `muon` moves matrices and kernels by
    their orthogonal momentum, and what `by_adamw` names, and all embeddings, by AdamW at the same rate. `layer_decay`
    multiplies the learning rate once more for each block that lies between a parameter and the heads. `ema` keeps a
    float32 average of the weights, of which each step forgets `1 - ema`; it starts from the initial weights and goes
    into checkpoints as ema.safetensors.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    final_lr: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[Beta, Beta] = BETAS
    momentum: float | None = Field(None, ge=0, lt=1)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 leaves gradients alone.")
    by_adamw: list[str] = Field([], description="Parameter-name prefixes that Muon leaves to AdamW.")
    multipliers: dict[str, float] = Field({}, description="Parameter-name prefix -> factor on the learning rate.")
    layer_decay: float = Field(1.0, gt=0, le=1)
    freeze: list[str] = Field([], description="Parameter-name prefixes that are not trained.")
    ema: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _settings_of_this_optimizer(self) -> "OptimConfig":
        if self.momentum is not None and self.name == "adamw":
            raise ValueError(f"`optim.momentum` (={self.momentum}) is for `optim.name` sgd or muon, not adamw")
        if self.betas != BETAS and self.name == "sgd":
            raise ValueError(f"`optim.betas` (={list(self.betas)}) is for `optim.name` adamw or muon, not sgd")
        if self.by_adamw and self.name != "muon":
            raise ValueError(f"`optim.by_adamw` (={self.by_adamw}) is for `optim.name` muon, not {self.name}")
        return self


HOMES = {
    "train_batch_size": "data.global_batch",
    "train_micro_batch_size_per_gpu": "data.global_batch",
    "gradient_accumulation_steps": "engine.accumulation",
    "gradient_clipping": "optim.clip",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "torch_autocast": "engine.precision",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
}
"""DeepSpeed's keys that follow from ours: a second value would win silently."""


class EngineConfig(Section):
    """How DeepSpeed runs the step.

    `precision` `bf16` and `fp16` are autocast: layers multiply in it; weights, gradients and optimizer stay float32,
    and `fp16` scales the loss as high as gradients allow.
    `accumulation` divides each rank's part of the global batch into this many micro batches: the same step in less
    memory, for one more forward. `activation_checkpointing` keeps the inputs of each block alone (true), or of those
    whose names start with one of a list (`[model.fusion.]`: the trunk's). `compile` fuses the inside of each block, and
    `offload` keeps the optimizer's state, or also the weights (`all`), on the host.
    `deepspeed` is merged into DeepSpeed's configuration, for keys this file does not name.
    """

    zero: Literal[0, 1, 2, 3] = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulation: int = Field(1, ge=1)
    activation_checkpointing: bool | list[str] = False
    compile: bool = False
    offload: Literal["none", "optimizer", "all"] = "none"
    deepspeed: dict[str, Any] = Field({})

    @field_validator("deepspeed")
    @classmethod
    def _one_home_each(cls, keys: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(HOMES.keys() & keys):
            raise ValueError(f"`engine.deepspeed.{taken[0]}` is derived: set `{HOMES[taken[0]]}`")
        if "stage" in keys.get("zero_optimization", {}):
            raise ValueError("`engine.deepspeed.zero_optimization.stage` is derived: set `engine.zero`")
        return keys

    @model_validator(mode="after")
    def _stages_that_can(self) -> "EngineConfig":
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero < least:
            raise ValueError(
                f"`engine.offload` (={self.offload}) needs `engine.zero` (={self.zero}) of {least} or more"
            )
        if self.compile and self.zero == 3:
            raise ValueError(
                "`engine.compile` (=True) needs `engine.zero` (=3) of at most 2: stage 3 works inside blocks"
            )
        return self


class RunConfig(Section):
    """The run folder and its rhythm, in optimizer steps.

    `resume`: `never` refuses a folder that holds a run, `auto` continues it or starts, `overwrite` deletes it first.
    `async_save` writes a checkpoint from a copy in host memory while training goes on; the one before stays until it
    is whole. Of the checkpoints the newest `keep_last` stay, and those of steps that `keep_every` divides.
    `on_save_failure`: after a checkpoint that could not be written (a full disk) the run stops, or goes on to the next
    one; one that takes longer than half of `silence_timeout` was not written.
    A batch whose loss or gradient is not finite, or whose loss is `spike` standard deviations above the last ones, is
    quarantined: the run goes back to its last checkpoint and past that batch, at most `max_rollbacks` times.
    `track` names who else gets the numbers of log.jsonl: `wandb`, `mlflow` (`pretrain.trackers`).
    A rank without a step (and the save behind it) for `silence_timeout` seconds ends with a stack of its threads.
    `rehearse` tries a step of the largest shape first, of which nothing stays: memory that does not suffice shows at
    once, before a file is written.
    """

    out: str = ""
    steps: int = Field(1000, ge=0)
    seed: int = 0
    log_every: int = Field(20, ge=1)
    save_every: int = Field(1000, ge=1)
    async_save: bool = True
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    on_save_failure: Literal["stop", "continue"] = "stop"
    max_rollbacks: int = Field(3, ge=0)
    spike: float | None = Field(None, gt=0)
    silence_timeout: float = Field(1800, gt=0)
    rehearse: bool = True
    resume: Literal["never", "auto", "overwrite"] = "never"
    track: list[TrackerName] = Field([])


class SystemConfig(Section):
    """Which published system a configuration describes; read by `pretrain systems`, without effect on a run.

    `vocabulary` is the number of tokens of the published tokenizer. `parameters` is the published count, or one that
    follows from the official code, and `counts` what it covers: `all`, or the `model` without heads; `source` says
    where it is from. `held_by` names the test that holds its composition against an independent implementation.
    """

    name: str
    stream: Literal["single", "dual"]
    paper: str
    vocabulary: int = Field(ge=1)
    parameters: float = Field(gt=0)
    counts: Literal["all", "model"] = "all"
    source: str
    held_by: str


class PretrainConfig(Section):
    """Everything a run is made of."""

    system: SystemConfig | None = None
    model: ModelConfig = ModelConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _matrices_are_whole(self) -> "PretrainConfig":
        if self.optim.name == "muon" and self.engine.zero:
            raise ValueError(
                f"`optim.name` (=muon) reads whole matrices, so `engine.zero` (={self.engine.zero}) must be 0"
            )
        return self

    @model_validator(mode="after")
    def _regions_are_read(self) -> "PretrainConfig":
        if self.model.vision.region and self.data.regions is None:
            raise ValueError("`model.vision.region` reads regions, so `data.regions` must not be null")
        reader = "data.regions" if self.data.regions else self.objectives.phrases
        if reader and (moving := self.data.augment.moving):
            raise ValueError(f"`data.augment.{moving[0]}` moves pixels, but not the boxes that `{reader}` reads")
        return self

    @model_validator(mode="after")
    def _shapes_fit_the_model(self) -> "PretrainConfig":
        shape, vision = self.data.image_shape, self.model.vision
        if shape is None:
            return self
        if self.data.augment.blend:
            raise ValueError("`data.augment.blend` mixes images of one shape, so `data.image_shape` must be null")
        if vision.region:
            raise ValueError("`data.image_shape` is for models that read pixels, and `model.vision.region` reads none")
        if vision.patch and shape.multiple % vision.patch.size:
            raise ValueError(
                f"`data.image_shape.multiple` (={shape.multiple}) must be a multiple of `model.vision.patch.size` "
                f"(={vision.patch.size})"
            )
        if not vision.patch and self.engine.zero == 3:
            raise ValueError(
                "`data.image_shape` runs a backbone once for each shape of a batch, of which ranks have different "
                "numbers: `engine.zero` (=3) cannot follow, use 0, 1 or 2"
            )
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_model(self) -> "PretrainConfig":
        objectives, regions = self.objectives, self.data.regions
        hide, classes = (regions.hide, regions.classes) if regions else (None, 0)
        if reason := (
            misfit(objectives, self.model.fusion)
            or missing_regions(objectives, hide, classes)
            or no_grid(objectives, self.model.vision, square=self.data.image_shape is None)
        ):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _pollution_has_a_second_segment(self) -> "PretrainConfig":
        pollution, second = self.objectives.pollution, self.data.second
        if pollution and second is None:
            raise ValueError("`objectives.pollution` needs a second segment, so `data.second` must not be null")
        if pollution and pollution.kind == "three_way" and second != "tags":
            raise ValueError(
                f"`objectives.pollution.kind` (=three_way) needs tags, so `data.second` (={second}) must be tags"
            )
        return self

    @model_validator(mode="after")
    def _momentum_towers_are_whole(self) -> "PretrainConfig":
        if self.objectives.momentum is None:
            return self
        if self.engine.zero == 3:
            raise ValueError(
                "`objectives.momentum` moves whole copies of the weights, of which `engine.zero` (=3) leaves each rank "
                "a part: use 0, 1 or 2"
            )
        return self
