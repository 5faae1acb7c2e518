"""Not a test: one rank of a life of several runs, all in one process, each at its own ZeRO stage.

python -m tests.distributed.journey FILE OUT NAME=ZERO/STEPS ... [key=value ...]
Each run goes on in OUT/NAME, or begins there, up to its step.
"""

import sys

from pretrain.config import PretrainConfig
from pretrain.settings import load_config
from pretrain.train import fit

if __name__ == "__main__":
    file, out, *words = sys.argv[1:]
    overrides = [word for word in words if "." in word]
    for word in words:
        if word not in overrides:
            name, _, life = word.partition("=")
            zero, _, steps = life.partition("/")
            own = [f"run.out={out}/{name}", f"run.steps={steps}", f"engine.zero={zero}", "run.resume=auto"]
            fit(load_config(PretrainConfig, file, [*overrides, *own]))
