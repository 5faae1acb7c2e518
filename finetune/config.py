"""The configuration of fine-tuning: pretraining's sections with other defaults. The model is the checkpoint's.

Precedence as in `pretrain.config`, later wins: the defaults here, `base:`, the file, the command line.
"""

from typing import Any, Literal

from pydantic import Field

from pretrain.config import EngineConfig, OptimConfig, PretrainConfig, RunConfig
from pretrain.data.augment_config import AugmentConfig
from pretrain.objectives.config import ITCConfig, ITMConfig, ObjectivesConfig
from pretrain.settings import Section, parse_config
from shards.errors import UserError


class RetrievalObjectives(ObjectivesConfig):
    """Contrast and matching with hard negatives, as ALBEF, BLIP and X-VLM fine-tune; null leaves one out."""

    itc: ITCConfig | None = ITCConfig()
    itm: ITMConfig | None = ITMConfig()


class RetrievalData(Section):
    """How pairs are batched. What is read comes from the command line; tokenizer, regions, the shape of images and the
    second segment of the texts from the checkpoint.

    `max_tokens` null keeps the checkpoint's. The others are as in `pretrain.config.DataConfig`.
    """

    global_batch: int = Field(256, ge=1)
    max_tokens: int | None = Field(None, ge=4)
    workers: int = Field(0, ge=0)
    group_by: str | None = None
    captions: Literal["one", "join"] = "one"
    keep_gigabytes: float = Field(0.0, ge=0)
    augment: AugmentConfig = AugmentConfig()
    damage_budget: float = Field(0.01, ge=0, le=1)


class RetrievalOptim(OptimConfig):
    """A tenth of pretraining's learning rate."""

    lr: float = Field(1e-5, gt=0)


class RetrievalModel(Section):
    """What may differ from the checkpoint's model: `image_size`, null for its own; positions are stretched."""

    image_size: int | None = Field(None, ge=16)


class ValidationConfig(Section):
    """How checkpoints are judged where validation pairs are given, by RSUM after each save.

    `rerank` is as in `finetune evaluate`, null for its default. The run ends after `patience` checkpoints in a row that
    are no better; null trains to the end. The best one is kept either way.
    """

    rerank: int | None = Field(None, ge=0)
    patience: int | None = Field(None, ge=1)


class FinetuneConfig(Section):
    """Everything of a fine-tuning run; what is not said of the model is the checkpoint's."""

    model: RetrievalModel = RetrievalModel()
    objectives: RetrievalObjectives = RetrievalObjectives()
    data: RetrievalData = RetrievalData()
    optim: RetrievalOptim = RetrievalOptim()
    engine: EngineConfig = EngineConfig()
    run: RunConfig = RunConfig()
    validation: ValidationConfig = ValidationConfig()


def pretrain_config(config: FinetuneConfig, checkpoint: PretrainConfig, shards: str) -> PretrainConfig:
    """What `pretrain.train.fit` runs.

    Args:
        checkpoint: The configuration of the checkpoint that training starts from.
        shards: Recorded as `data.shards`; empty where the pairs come from an annotation file.

    Raises:
        UserError: a fused objective on a model that cannot fuse.
    """
    fused = [name for name in ("itm", "mlm") if getattr(config.objectives, name)]
    if checkpoint.model.fusion.trunk == "none" and fused:
        name = f"objectives.{fused[0]}"
        raise UserError(f"`{name}` reads fused features, which this checkpoint does not have: pass {name}=null")
    values: dict[str, Any] = config.model_dump(exclude={"model", "validation"})
    values["data"]["max_tokens"] = config.data.max_tokens or checkpoint.data.max_tokens
    if config.objectives.itm and checkpoint.objectives.itm:
        values["objectives"]["itm"]["head"] = checkpoint.objectives.itm.head
    as_trained = checkpoint.data.model_dump(include={"tokenizer", "second", "regions", "image_shape"})
    values["data"] |= as_trained | {"shards": shards}
    model = checkpoint.model.model_dump()
    model["image_size"] = config.model.image_size or checkpoint.model.image_size
    return parse_config(PretrainConfig, values | {"model": model})
