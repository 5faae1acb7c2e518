"""A model and its objectives as one module: batch in, named losses out. This is what the engine wraps."""

import torch
from torch import Tensor, nn

from pretrain.batch import Batch
from pretrain.micro import MicroBatched
from pretrain.models.build import DuoModel, self_contained
from pretrain.models.config import ModelConfig
from pretrain.models.interface import ImageInput
from pretrain.objectives.config import ObjectivesConfig
from pretrain.objectives.itc import ITC
from pretrain.objectives.itm import ITM
from pretrain.objectives.mlm import MLM
from pretrain.objectives.views import Views

OBJECTIVES: dict[str, type[ITC | ITM | MLM]] = {"itc": ITC, "itm": ITM, "mlm": MLM}


class Task(nn.Module):
    """The composition under training.

    Args:
        vocabulary: Number of tokens of the tokenizer.
    """

    def __init__(self, model: ModelConfig, objectives: ObjectivesConfig, vocabulary: int) -> None:
        super().__init__()
        self.model = DuoModel(model, vocabulary)
        chosen = {name: config for name in OBJECTIVES if (config := getattr(objectives, name)) is not None}
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](config, self.model.shape) for name, config in chosen.items()}
        )
        self.weights = {name: config.weight for name, config in chosen.items()}
        self.micro_batches = 1  # this and the next are for the engine to decide
        self.autocast: torch.dtype | None = None
        self.reads = {view for name in chosen for view in OBJECTIVES[name].reads}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns each objective's loss and, as `loss`, their weighted sum; each a float scalar of this rank's part."""
        with torch.autocast(batch.token_ids_BL.device.type, self.autocast, enabled=self.autocast is not None):
            return self._losses(batch)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        rows = len(batch) // self.micro_batches
        model = self.model if self.micro_batches == 1 else MicroBatched(self.model, rows)
        views = Views(model, batch, self.reads)
        losses = {name: objective(views) for name, objective in self.objectives.items()}
        return {"loss": sum(self.weights[name] * loss for name, loss in losses.items()), **losses}


def outline(model: ModelConfig, objectives: ObjectivesConfig, vocabulary: int) -> Task:
    """The task on the meta device: names and shapes without values, in a tenth of a second.

    Raises:
        UserError: options that the encoders refuse, or an image encoder that yields no tokens.
    """
    size, portable = model.image_size, self_contained(model)
    if model.vision.weights != "timm":  # a file's names and shapes are compared too, but nothing is fetched yet
        portable = portable.model_copy(update={"vision": model.vision})
    with torch.device("meta"):
        task = Task(portable, objectives, vocabulary)
        task.model.encode_image(ImageInput(torch.zeros(1, size, size, 3, dtype=torch.uint8)))
    return task
