"""Before the first step: all ranks are about to train the same thing."""

from collections.abc import Mapping

import torch.distributed as dist

from pretrain import distributed
from shards.errors import UserError


def check_agreement(facts: Mapping[str, object]) -> None:
    """Compares named facts over all ranks; every rank calls it.

    Raises:
        UserError: on all ranks alike, naming the first fact that differs, with its values.
    """
    everywhere: list[Mapping[str, object] | None] = [None] * distributed.world()
    if distributed.world() == 1:
        return
    dist.all_gather_object(everywhere, dict(facts))
    first, *others = everywhere
    assert first is not None
    for rank, other in enumerate(others, start=1):
        assert other is not None
        for name in [*first, *(name for name in other if name not in first)]:
            if first.get(name) != other.get(name):
                raise UserError(
                    f"`{name}` (={other.get(name)}) of rank {rank} must be that of rank 0 (={first.get(name)})"
                )
