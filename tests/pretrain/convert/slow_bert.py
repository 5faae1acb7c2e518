"""BERT by its equations, over tensors by their published names: the oracle where no library has the system's class."""

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, HEADS = 32, 4


class Draw:
    """Random weights under published names."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def linear(self, name: str, outputs: int, inputs: int = WIDTH) -> dict[str, Tensor]:
        return {f"{name}.weight": self.normal(outputs, inputs) * 0.2, f"{name}.bias": self.normal(outputs) * 0.1}

    def norm(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + self.normal(WIDTH) * 0.1, f"{name}.bias": self.normal(WIDTH) * 0.1}

    def layer(self, name: str, image_width: int | None = None) -> dict[str, Tensor]:
        """A layer; with cross-attention where `image_width` is given."""
        made = {}
        parts = {"attention": WIDTH} | ({"crossattention": image_width} if image_width else {})
        for part, inputs in parts.items():
            made |= self.linear(f"{name}.{part}.self.query", WIDTH)
            made |= self.linear(f"{name}.{part}.self.key", WIDTH, inputs)
            made |= self.linear(f"{name}.{part}.self.value", WIDTH, inputs)
            made |= self.linear(f"{name}.{part}.output.dense", WIDTH) | self.norm(f"{name}.{part}.output.LayerNorm")
        made |= self.linear(f"{name}.intermediate.dense", 4 * WIDTH) | self.norm(f"{name}.output.LayerNorm")
        return made | self.linear(f"{name}.output.dense", WIDTH, 4 * WIDTH)


def dense(given, name, x):
    return F.linear(x, given[f"{name}.weight"], given[f"{name}.bias"])


def normed(given, name, x):
    return F.layer_norm(x, (WIDTH,), given[f"{name}.weight"], given[f"{name}.bias"], 1e-12)


def attended(given, name, x, y, mask):
    q, k, v = (dense(given, f"{name}.self.{part}", z) for part, z in (("query", x), ("key", y), ("value", y)))
    heads = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
    scores = heads[0] @ heads[1].transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
    mixed = (scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    return normed(given, f"{name}.output.LayerNorm", x + dense(given, f"{name}.output.dense", mixed))


def bert_layer(given, name, x, mask, image=None):
    x = attended(given, f"{name}.attention", x, x, mask)
    if image is not None:
        x = attended(given, f"{name}.crossattention", x, image, torch.ones(image.shape[:2], dtype=torch.bool))
    inside = F.gelu(dense(given, f"{name}.intermediate.dense", x))
    return normed(given, f"{name}.output.LayerNorm", x + dense(given, f"{name}.output.dense", inside))
