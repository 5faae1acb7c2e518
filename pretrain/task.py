"""A model and its objectives as one module: batch in, named losses out. This is what the engine wraps."""

from torch import Tensor, nn

from pretrain.batch import Batch
from pretrain.config import ModelConfig, ObjectivesConfig
from pretrain.models.build import DuoModel
from pretrain.objectives.itc import ITC
from pretrain.objectives.itm import ITM
from pretrain.objectives.mlm import MLM
from pretrain.objectives.views import Views

OBJECTIVES = {"itc": ITC, "itm": ITM, "mlm": MLM}


class Task(nn.Module):
    """The composition under training.

    Args:
        vocabulary: Number of tokens of the tokenizer.
    """

    def __init__(self, model: ModelConfig, objectives: ObjectivesConfig, vocabulary: int) -> None:
        super().__init__()
        self.model = DuoModel(model, vocabulary)
        chosen = {name: config for name in OBJECTIVES if (config := getattr(objectives, name)) is not None}
        words = len(self.model.word_embedding_VD)
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](config, self.model.width, words) for name, config in chosen.items()}
        )
        self.weights = {name: config.weight for name, config in chosen.items()}
        self.masked = any(OBJECTIVES[name].masked for name in chosen)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns each objective's loss and, as `loss`, their weighted sum; each a float scalar of this rank's part."""
        views = Views(self.model, batch, self.masked)
        losses = {name: objective(views) for name, objective in self.objectives.items()}
        return {"loss": sum(self.weights[name] * loss for name, loss in losses.items()), **losses}
