#!/usr/bin/env bash
''':'
# Pretrains on this machine, or as one process of many. All of these run it:
#   bash launch/pretrain.sh --config configs/pretrain/demo.yaml run.out=runs/demo
#   deepspeed launch/pretrain.sh --config configs/pretrain/demo.yaml run.out=runs/demo
#   deepspeed --num_gpus 8 --hostfile launch/hostfile launch/pretrain.sh --config ...
#   torchrun --nproc-per-node 8 launch/pretrain.sh --config ...
# The same command starts a run or continues it. The launchers hand this file to Python, so it is both: what follows up to
# the closing quotes is the shell's, the rest is Python's.
exec "${PYTHON:-python3}" -u "$0" "$@"
'''

import sys

from pretrain.cli import main

main(["run.resume=auto", *sys.argv[1:]])
