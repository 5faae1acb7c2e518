#!/usr/bin/env bash
# Pretrains under torchrun, which starts all ranks again when one dies; each life continues the last checkpoint:
#   bash launch/torchrun.sh --config configs/pretrain/demo.yaml run.out=runs/demo
# torchrun takes its options from variables: PET_NPROC_PER_NODE (processes, default: one for each GPU), PET_MAX_RESTARTS
# (default: 3) and, for several machines, PET_NNODES, PET_RDZV_BACKEND and so on, as `torchrun --help` names them.
set -euo pipefail
cd "$(dirname "$0")/.."
export PET_NPROC_PER_NODE="${PET_NPROC_PER_NODE:-gpu}" PET_MAX_RESTARTS="${PET_MAX_RESTARTS:-3}"
if [ -z "${PET_NNODES:-}" ]; then
    export PET_STANDALONE=1 # this machine alone, on a free port
fi
exec torchrun launch/pretrain.sh "$@"
