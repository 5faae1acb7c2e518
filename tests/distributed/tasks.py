"""Not a test: tiny models under each kind of objective, trained for two steps on a global batch."""

from dataclasses import replace

import torch

from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.task import Task
from tests.distributed.group import Found, mean_over_ranks, rows_of_rank
from tests.pretrain.tiny import CLASSES, VOCABULARY, phrase_batch, random_batch, region_batch, tiny_config, tiny_joint

PAIRS = 8
STEPS = 2  # a queue that the first fills is read by the second
TASKS = {
    "albef": tiny_config(),
    "albef with momentum": tiny_config(
        objectives={
            "momentum": {"decay": 0.9, "ramp_steps": 4},
            "itc": {"targets": "distilled", "queue": 12},
            "itm": {"negatives": "random"},
            "mlm": {"targets": "distilled"},
            "lm": {"label_smoothing": 0.1},
        }
    ),
    "x-vlm": tiny_config(
        objectives={"itc": {"regions": 0.5}, "itm": {"regions": 0.5, "head": "mlp"}, "mlm": {"regions": 0.5}, "box": {}}
    ),
    "siglip": tiny_config(objectives={"itc": {"loss": "sigmoid", "bias": -2.0}}),
    "filip": tiny_config(objectives={"itc": {"similarity": "tokens", "label_smoothing": 0.1}}),
    "blip-2": tiny_config(objectives={"itc": {"similarity": "queries"}}),
    "lit": tiny_config(
        model=tiny_config().model.model_dump() | {"projection": {"hidden": 24}},
        objectives={"bank": {"soft": 0.2, "soft_temperature": 0.5}},
    ),
    "uniter": tiny_joint(
        {
            "itm": {"negatives": "swap"},
            "wra": {},
            "mlm": {"image": "masked"},
            "mrf": {},
            "mrc": {"classes": CLASSES, "target": "distribution", "text": "masked"},
            "mra": {"classes": CLASSES},
        }
    ),
    "vilt, 4-way": tiny_config(objectives={"itm": {"ranking": {"texts": 3}}}),
    "vilbert, 4-way": tiny_joint({"itm": {"ranking": {"texts": 1, "images": 1, "similar": 1}}}),
    "uniter, mined": tiny_joint({"itm": {"ranking": {"loss": "margin", "texts": 2, "images": 2, "mined_from": 5}}}),
    "vse++": tiny_config(objectives={"triplet": {}, "itm": {"ranking": {"loss": "circle", "texts": 4, "images": 2}}}),
    "unified-vlp": tiny_joint({"mlm": {}, "seq2seq": {}, "lm": {"attention": "prefix"}}),
    "vinvl": tiny_joint({"mlm": {}, "pollution": {"kind": "three_way"}, "box": {}, "mrc": {"classes": CLASSES}}),
}


def trained(config: PretrainConfig) -> Found:
    """Losses of all steps, the gradient of every parameter in the last, and the buffers after it."""
    torch.manual_seed(0)
    task = Task(config.model, config.objectives, VOCABULARY).double()
    if config.objectives.bank:
        fill_randomly(task, PAIRS + 3)
    found: Found = {}
    for step in range(STEPS):
        losses = task(_part_of_rank(_batch(config, step)))
        found |= {f"{step} {name}": loss.detach() for name, loss in losses.items()}
        task.zero_grad()
        losses["loss"].backward()
        _descend(task)
    buffers = {name: value for name, value in task.named_buffers() if value.is_floating_point()}
    found |= {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    return {name: mean_over_ranks(value) for name, value in (found | buffers).items()}


def fill_randomly(task: Task, groups: int) -> None:
    """A bank of one to three texts for each of the groups 0, 1, ...: one more in each than in the group before."""
    group_T = torch.cat([torch.full((1 + group % 3,), group) for group in range(groups)])
    generator = torch.Generator().manual_seed(0)
    features_TD = torch.randn(len(group_T), task.model.text.width, generator=generator, dtype=torch.float64)
    task.get_submodule("objectives.bank").fill(features_TD, group_T)


def _batch(config: PretrainConfig, seed: int) -> Batch:
    if config.model.vision.region is None:
        return (phrase_batch if config.objectives.phrases else random_batch)(PAIRS, seed=seed)
    batch = region_batch(PAIRS, seed=seed)
    floats = {name: x.double() for name, x in vars(batch).items() if x is not None and x.is_floating_point()}
    return replace(batch, **floats)


def _part_of_rank(batch: Batch) -> Batch:
    """This rank's rows, padded to its own longest text and largest number of regions."""
    cut = {name: rows_of_rank(value) for name, value in vars(batch).items() if value is not None}
    tokens = int(cut["token_mask_BL"].sum(1).max())
    regions = int(cut["region_mask_BK"].sum(1).max()) if "region_mask_BK" in cut else 0
    for name in cut:
        if name.endswith("_BL"):
            cut[name] = cut[name][:, :tokens]
        elif "region" in name:
            cut[name] = cut[name][:, :regions]
    return Batch(**cut)


def _descend(task: Task) -> None:
    """What the engine does at the end of a step, with SGD; the averaged gradients stay to be looked at."""
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.grad is not None:
                parameter.grad = mean_over_ranks(parameter.grad)
                parameter -= 0.1 * parameter.grad
    task.end()
