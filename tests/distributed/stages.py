"""Not a test: one rank that trains the configuration `FILE` at each ZeRO stage into OUT/zero-N, all in one process.

python -m tests.distributed.stages FILE OUT [key=value ...]
"""

import sys

from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from pretrain.train import fit

if __name__ == "__main__":
    file, out, *overrides = sys.argv[1:]
    for zero in range(4):
        fit(load_config(PretrainConfig, file, [f"run.out={out}/zero-{zero}", f"engine.zero={zero}", *overrides]))
