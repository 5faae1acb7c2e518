#!/usr/bin/env bash
# The whole line on generated scenes: raw pairs -> shards -> pretraining -> fine-tuning -> search, export, table and report.
# `make demo` installs and runs it; the commands below are those a user types.
set -euo pipefail
cd "$(dirname "$0")/.."
run=runs/demo
started=$SECONDS
# Threads that wait must not burn the cores of those that work: these machines are often shared.
export OMP_WAIT_POLICY=PASSIVE

stage() { printf '\n[%s] %s\n' "$1" "$2"; }

stage 1/9 "8,000 scenes to train on and 500 others to test on, as WebDataset shards"
shards build scenes --samples 8000 --split train --out $run/shards/train --overwrite
shards build scenes --samples 500 --split test --out $run/shards/test --overwrite
shards tokenizer $run/shards/train --out $run/tokenizer.json --overwrite

stage 2/9 "every byte read back"
shards verify $run/shards/train
shards verify $run/shards/test

stage 3/9 "pretraining: ITC + ITM + MLM"
bash launch/pretrain.sh --config configs/pretrain/demo.yaml --overwrite
bash launch/pretrain.sh --config configs/pretrain/demo.yaml --overwrite run.out=$run/untrained run.steps=0

stage 4/9 "fine-tuning of the pretrained model"
finetune retrieval --ckpt $run/pretrain --shards $run/shards/train --config configs/finetune/demo.yaml \
    --out $run/finetune --overwrite

stage 5/9 "the same fine-tuning from scratch"
finetune retrieval --ckpt $run/untrained --shards $run/shards/train --config configs/finetune/demo.yaml \
    --out $run/scratch --overwrite

stage 6/9 "retrieval on the 500 scenes never trained on, with and without re-ranking by the matching head"
measure() { # run folder, row, results file, further options
    finetune evaluate --ckpt "$run/$1" --shards $run/shards/test --name "$2" --out "$run/$3" --overwrite "${@:4}"
}
measure finetune "pretrained + fine-tuned" results.json --trained-on "8,000 scenes"
measure finetune "pretrained, ITC alone" results-itc.json --trained-on "8,000 scenes" --rerank 0
measure scratch "fine-tuned from scratch" results-scratch.json
measure scratch "from scratch, ITC alone" results-scratch-itc.json --rerank 0

stage 7/9 "search by the test scenes' pictures: one text, its best 50 by cosine ordered again by the matching head"
finetune index --ckpt $run/finetune --shards $run/shards/test --out $run/scenes.index --overwrite
finetune search $run/scenes.index "a black heart, a pink cross and a yellow circle" --k 5 --rerank 50

stage 8/9 "what publishing would send: written, opened by a fresh process and compared; nothing is sent"
finetune publish --ckpt $run/finetune --repo someone/scenes --dry-run --license apache-2.0 \
    --data "8,000 generated scenes with five captions each" --data-license cc0-1.0 \
    --results $run/results.json --results $run/results-itc.json --out $run/export --overwrite
ls -l $run/export

stage 9/9 "table and report"
rows=("$run"/results.json "$run"/results-itc.json "$run"/results-scratch.json "$run"/results-scratch-itc.json)
finetune report "${rows[@]}" --out $run/report.html --runs $run/pretrain --runs $run/finetune --runs $run/scratch
finetune table "${rows[@]}" --only-measured
printf '\nDone in %d min %02d s. Open %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$run/report.html"
