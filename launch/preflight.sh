#!/usr/bin/env bash
''':'
# Looks, before hours of many GPUs are paid, whether a run can start: the same words as for launch/pretrain.sh, with any
# of its launchers, for example
#   deepspeed --hostfile launch/hostfile launch/preflight.sh --config configs/pretrain/demo.yaml run.out=/shared/demo
# Every rank reads the configuration and the data; versions must be equal everywhere, the disk must hold the checkpoints.
# Prints the disk's speed and the bandwidth of an all-reduce. Leaves nothing behind; the status is 0 if all is well.
exec "${PYTHON:-python3}" -u "$0" "$@"
'''

import sys

from pretrain.preflight import main

main(["run.resume=auto", *sys.argv[1:]])
