#!/usr/bin/env bash
# The whole way on the built-in demo set: fetch, index, train jointly and with a frozen retriever, evaluate, compare.
# Each command leaves its result alone when it is run again unchanged.
set -euo pipefail
out=${1:-demo-run}
settings="$(dirname "$0")/demo.yaml"
answer="--num-samples 500 --num-beams 1 --n-docs 4 --batch-size 32"

set -x
ragtrain data fetch demo --output-dir "$out/data"
ragtrain index prepare --passages "$out/data/passages.jsonl" --output-dir "$out/index"
ragtrain eval --test-data "$out/data/test.jsonl" --index-path "$out/index" --output-dir "$out/untrained" $answer
ragtrain train rag --train-data "$out/data" --index-path "$out/index" --config "$settings" --output-dir "$out/joint"
ragtrain train rag --train-data "$out/data" --index-path "$out/index" --config "$settings" --output-dir "$out/frozen" \
  --no-train-question-encoder
ragtrain eval --model-dir "$out/joint" $answer
ragtrain eval --model-dir "$out/frozen" $answer
ragtrain compare "$out/untrained" "$out/frozen" "$out/joint"
ragtrain compare "$out/frozen" "$out/joint"
