"""A model and its objectives as one module: batch in, named losses out. This is what the engine wraps."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pretrain.batch import Batch
from pretrain.micro import MicroBatched
from pretrain.models.build import DuoModel, self_contained
from pretrain.models.config import ModelConfig
from pretrain.models.interface import VisionLanguageModel
from pretrain.momentum import Momentum
from pretrain.objectives.bank import Bank
from pretrain.objectives.box import Box
from pretrain.objectives.config import ObjectivesConfig
from pretrain.objectives.itc import ITC
from pretrain.objectives.itm import ITM
from pretrain.objectives.lm import LM
from pretrain.objectives.mlm import MLM, Seq2Seq
from pretrain.objectives.mrm import MRA, MRC, MRF
from pretrain.objectives.objective import Objective
from pretrain.objectives.pollution import Pollution
from pretrain.objectives.triplet import Triplet
from pretrain.objectives.views import Look, Teacher, Views
from pretrain.objectives.wra import WRA
from pretrain.policy import draw_entry

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "itc": ITC,
    "bank": Bank,
    "triplet": Triplet,
    "itm": ITM,
    "mlm": MLM,
    "seq2seq": Seq2Seq,
    "lm": LM,
    "mrf": MRF,
    "mrc": MRC,
    "mra": MRA,
    "wra": WRA,
    "pollution": Pollution,
    "box": Box,
}


class Task(nn.Module):
    """The composition under training.

    Args:
        vocabulary: Number of tokens of the tokenizer.
    """

    def __init__(self, model: ModelConfig, objectives: ObjectivesConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = objectives
        self.model = DuoModel(model, vocabulary)
        self.objectives = nn.ModuleDict(
            {name: OBJECTIVES[name](config, self.model.shape) for name, config in objectives.chosen.items()}
        )
        self.momentum = Momentum(objectives.momentum, self.model, self._heads()) if objectives.momentum else None
        self.micro_batches = 1  # this and the next are for the engine to decide
        self.autocast: torch.dtype | None = None
        self._active = list(objectives.chosen)

    def begin(self, seed: int, step: int) -> None:
        """Chooses what the forwards of this step train; every rank calls it with the same arguments."""
        if self.config.policy == "one":
            self.choose(draw_entry(self.config.mix, seed, step))

    def choose(self, names: Sequence[str]) -> None:
        """These objectives alone are trained by the forwards that follow."""
        self._active = list(names)

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """All that `begin` may choose."""
        if self.config.policy == "one":
            return [tuple(entry.split("+")) for entry in self.config.mix]
        return [self.active]

    @property
    def active(self) -> tuple[str, ...]:
        """The objectives of this step."""
        return tuple(self._active)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns each objective's loss and, as `loss`, their weighted sum; each a float scalar of this rank's part."""
        with torch.autocast(batch.token_ids_BL.device.type, self.autocast, enabled=self.autocast is not None):
            return self._losses(batch)

    @property
    def matcher(self) -> ITM | Pollution | None:
        """The objective whose head judges whether a text is an image's own: matching, or captions told from polluted
        ones."""
        for head in self.objectives.values():
            if isinstance(head, ITM) or (isinstance(head, Pollution) and head.config.kind == "caption"):
                return head
        return None

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        active = self._named(self._active)
        views = Views(self._sized(self.model, batch), batch, _reads(active), self._teacher(batch), _looks(active))
        losses = {name: objective(views) for name, objective in active.items()}
        views.forget()
        weights = self.config.chosen
        return {"loss": sum(weights[name].weight * loss for name, loss in losses.items()), **losses}

    def end(self) -> None:
        """What follows when the optimizer has moved."""
        if self.momentum is not None:
            self.momentum.follow(self.model, self._heads())

    def start_momentum(self) -> None:
        """Sets the momentum towers to the weights as they are."""
        if self.momentum is not None:
            self.momentum.follow(self.model, self._heads(), start=True)

    def _teacher(self, batch: Batch) -> Teacher | None:
        momentum = self.momentum
        if momentum is None:
            return None
        followers = {name: one for name, one in self._followers().items() if name in self._active}
        views = Views(self._sized(momentum.model, batch), batch, _reads(followers), looks=_looks(followers))
        return Teacher(views, momentum.heads, momentum.alpha)

    def _sized(self, model: DuoModel, batch: Batch) -> VisionLanguageModel:
        rows = len(batch) // self.micro_batches
        return model if self.micro_batches == 1 else MicroBatched(model, rows)

    def _heads(self) -> dict[str, Objective]:
        """What the momentum towers copy beside the model: heads whose predictions are distilled."""
        return {name: one for name, one in self._followers().items() if isinstance(one, MLM)}

    def _followers(self) -> dict[str, Objective]:
        return {name: one for name, one in self._named(list(self.config.chosen)).items() if one.follows}

    def _named(self, names: Sequence[str]) -> dict[str, Objective]:
        return {name: cast(Objective, self.objectives[name]) for name in names}


def _reads(objectives: Mapping[str, Objective]) -> set[str]:
    return {view for objective in objectives.values() for view in objective.reads}


def _looks(objectives: Mapping[str, Objective]) -> dict[str, Look]:
    """Of each view as much as the objective that reads most of it."""
    looks: dict[str, Look] = {}
    for objective in objectives.values():
        looks |= {view: max(objective.look, looks.get(view, Look.PAIR)) for view in objective.reads}
    return looks


def outline(model: ModelConfig, objectives: ObjectivesConfig, vocabulary: int) -> Task:
    """The task on the meta device: names and shapes without values, in a tenth of a second.

    Raises:
        UserError: options that the encoders refuse, or an image encoder that yields no tokens.
    """
    # The names and shapes in files of initial weights are compared too.
    portable = self_contained(model).model_copy(update={"vision": model.vision, "fusion": model.fusion})
    with torch.device("meta"):
        task = Task(portable, objectives, vocabulary).eval()  # BatchNorm refuses one value per channel in training
        task.model.encode_image(task.model.vision.example())
    return task.train()
