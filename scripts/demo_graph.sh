#!/usr/bin/env bash
# The whole way of a graph model on the built-in demo set: fetch, make the graph, pre-train, fine-tune, evaluate, ask.
# Each command leaves its result alone when it is run again unchanged.
set -euo pipefail
out=${1:-demo-graph-run}

set -x
ragtrain data fetch demo --output-dir "$out/data"
ragtrain index prepare --graph --passages "$out/data/passages.jsonl" --graph-questions "$out/data" --output-dir "$out/graph"
ragtrain train gfm --config gfm/demo --stage pretrain --graphs "$out/graph" --max-steps 300 --output-dir "$out/pretrained"
ragtrain train gfm --config gfm/demo --stage finetune --graphs "$out/graph" --model-dir "$out/pretrained" \
  --output-dir "$out/run"
ragtrain eval --model-dir "$out/run" --num-samples 500 --recall-at 1 --recall-at 2 --recall-at 5
ragtrain index search "What sound does the cat make?" --model-dir "$out/run"
