#!/usr/bin/env bash
# The same line on real images and texts: the emoji corpus, which DUOSTREAM_TEST_DATA/emoji holds in Karpathy form.
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
finetune retrieval --ckpt $run/pretrain --annotations "$data/dataset.json" --images "$data/images" \
    --config configs/finetune/emoji.yaml --out $run/finetune --overwrite
for name in dataset dataset_unseen_concepts; do
    finetune evaluate --ckpt $run/finetune --annotations "$data/$name.json" --images "$data/images" --split test \
        --out $run/$name.results.json --name "emoji" --trained-on "emoji, 3 styles" --overwrite
done
finetune table $run/*.results.json --only-measured
finetune report $run/*.results.json --runs $run/pretrain --runs $run/finetune --out $run/report.html
printf '\nDone in %d min %02d s. Open %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$run/report.html"
