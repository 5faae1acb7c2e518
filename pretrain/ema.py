"""An exponential moving average of the weights, in float32, each rank holding its share whatever the ZeRO stage.

At stage 3 a parameter outside of a forward is empty, so averaging it would do nothing and say nothing; what is averaged
there is DeepSpeed's own partition of it. At the other stages each rank averages the slice that it would hold there.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain import distributed
from pretrain.host import on_host
from shards.errors import UserError


class Ema:
    """Starts as a copy of the weights; each `update` moves it `1 - decay` of the way to them.

    Args:
        module: As DeepSpeed has wrapped it, that is, already partitioned at stage 3.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self._module = decay, module
        self._shares = {id(p): _share(p).float().clone() for p in module.parameters()}

    @torch.no_grad()
    def update(self) -> None:
        now = [_share(parameter).float() for parameter in self._module.parameters()]
        torch._foreach_lerp_(list(self._shares.values()), now, 1 - self.decay)

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """Averaged parameters and present buffers on the CPU, as a state dict.

        Every rank calls it; one that does not `keep` them gets none.
        """
        found = {}
        for name, value in self._module.state_dict(keep_vars=True).items():
            whole = self._whole(value) if id(value) in self._shares else value.detach()
            if keep:
                found[name] = on_host(whole)
        return found

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Takes up what `weights` gave, at any world size and stage.

        Raises:
            UserError: a parameter is missing.
        """
        for name, parameter in self._module.named_parameters():
            if name not in weights:
                raise UserError(f"the averaged weights lack {name}")
            mine = self._shares[id(parameter)]
            mine.copy_(_slice(weights[name].reshape(-1), len(mine)))

    def _whole(self, parameter: Tensor) -> Tensor:
        """The average of one parameter, from the shares of all ranks."""
        mine = self._shares[id(parameter)]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        parts = [mine]
        if distributed.world() > 1:
            here = mine.to(distributed.collective_device())
            parts = [torch.empty_like(here) for _ in range(distributed.world())]
            dist.all_gather(parts, here)
        return torch.cat(parts)[: shape.numel()].reshape(shape)


def _share(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, flat, as long as every other rank's."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach().reshape(-1)
    return _slice(parameter.detach().reshape(-1), -(-parameter.numel() // distributed.world()))


def _slice(flat: Tensor, length: int) -> Tensor:
    mine = flat[distributed.rank() * length : (distributed.rank() + 1) * length]
    return F.pad(mine, (0, length - len(mine)))
