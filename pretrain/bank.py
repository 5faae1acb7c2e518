"""The texts of a corpus, read once by a frozen text encoder (for `objectives.bank`).

Shapes: T texts, L tokens, D width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pretrain.config import PretrainConfig
from pretrain.data.loader import Preparation
from pretrain.data.tokenizer import Tokenizer
from pretrain.models.build import DuoModel
from pretrain.models.interface import TextInput
from pretrain.objectives.bank import Bank
from pretrain.task import Task
from shards.console import progress
from shards.errors import DamagedSample, UserError
from shards.sources.base import Source

AT_ONCE = 256  # texts that go through the encoder together


def check_frozen(task: Task) -> None:
    """Refuses a bank whose texts would be out of date after one step.

    Raises:
        UserError: the text encoder is trained.
    """
    if "bank" in task.objectives and any(p.requires_grad for p in task.model.text.parameters()):
        raise UserError("`objectives.bank` reads each text once, so `optim.freeze` must hold model.text.")


def fill_bank(task: Task, config: PretrainConfig, tokenizer: Tokenizer, sources: Sequence[Source]) -> None:
    """Encodes every different text of each group; does nothing without a bank."""
    if "bank" not in task.objectives:
        return
    bank = task.objectives["bank"]
    assert isinstance(bank, Bank)
    texts = dict.fromkeys(bank_texts(config, tokenizer, sources))  # an ordered set
    ids = [tokenizer.encode(text, config.data.max_tokens).ids_L for _, text in texts]
    pooled = []
    for start in range(0, len(ids), AT_ONCE):
        pooled.append(_pooled(task.model, TextInput(*tokenizer.pad(ids[start : start + AT_ONCE]))))
    device = next(task.parameters()).device
    bank.fill(torch.cat(pooled), torch.tensor([group for group, _ in texts], device=device))


def bank_texts(config: PretrainConfig, tokenizer: Tokenizer, sources: Sequence[Source]) -> Iterator[tuple[int, str]]:
    """Every caption with the number of its group."""
    preparation = Preparation(config, tokenizer)
    with progress("read texts", sum(len(source) for source in sources)) as bar:
        for source in sources:
            for index in range(len(source)):
                bar.advance()
                try:
                    sample = source[index]
                except DamagedSample:  # the stream will meet and report it in its own place
                    continue
                group = preparation.group(source.identity(index), sample)
                yield from ((group, caption) for caption in sample.captions)


@torch.no_grad()
def _pooled(model: DuoModel, text: TextInput) -> Tensor:
    """What stands for each text before it is projected, float [T, D], without dropout."""
    device, training = model.word_embedding_VD.device, model.training
    model.eval()
    _, pooled_TD = model.pooled_text(TextInput(text.ids_BL.to(device), text.mask_BL.to(device)))
    model.train(training)
    return pooled_TD
