#!/usr/bin/env bash
# The line on real images and texts: the emoji corpus, which DUOSTREAM_TEST_DATA/emoji holds in Karpathy form. Both towers start
# from published weights; pretraining is the contrast that ranks, so there is no fine-tuning. What is used is the average of the
# weights (`optim.ema`).
set -euo pipefail
cd "$(dirname "$0")/.."
data="${DUOSTREAM_TEST_DATA:?is not set: the folder that holds emoji/}/emoji"
run=runs/emoji
started=$SECONDS
export OMP_WAIT_POLICY=PASSIVE

shards build karpathy --annotations "$data/dataset.json" --images "$data/images" --split train \
    --out $run/shards/train --overwrite
shards verify $run/shards/train
bash launch/pretrain.sh --config configs/pretrain/emoji.yaml --overwrite
for name in dataset dataset_unseen_concepts; do
    finetune evaluate --ckpt $run/pretrain/ema.safetensors --annotations "$data/$name.json" --images "$data/images" --split test \
        --out $run/$name.results.json --name "emoji" --trained-on "emoji, 3 styles (ImageNet, MiniLM)" --overwrite
done
finetune index --ckpt $run/pretrain/ema.safetensors --images "$data/images" --out $run/emoji.index --overwrite
finetune search $run/emoji.index "a cat that smiles" --k 5
finetune table $run/*.results.json --only-measured
finetune report $run/*.results.json --runs $run/pretrain --out $run/report.html
printf '\nDone in %d min %02d s. Open %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$run/report.html"
