"""Not a test: one rank that trains the configuration `FILE` at ZeRO 0, 1 and 2 into OUT/zero-N, and again from the
checkpoint of step MIDDLE in OUT/again-N.

python -m tests.distributed.momentum_stages FILE OUT MIDDLE [key=value ...]
"""

import sys
from pathlib import Path

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from pretrain.train import fit
from tests.pretrain.runs import interrupted

if __name__ == "__main__":
    file, out, middle, *overrides = sys.argv[1:]
    for zero in range(3):
        whole, again = Path(out) / f"zero-{zero}", Path(out) / f"again-{zero}"
        fit(load_config(PretrainConfig, file, [*overrides, f"run.out={whole}", f"engine.zero={zero}"]))
        if distributed.rank() == 0:
            interrupted(whole, int(middle), again)
        distributed.barrier()
        resumed = [f"run.out={again}", f"engine.zero={zero}", "run.resume=auto"]
        fit(load_config(PretrainConfig, file, [*overrides, *resumed]))
