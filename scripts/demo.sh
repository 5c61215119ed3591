#!/usr/bin/env bash
# The whole way on the built-in demo set: fetch, index, train jointly and with a frozen retriever, evaluate, compare.
# Each command leaves its result alone when it is run again unchanged.
set -euo pipefail
out=${1:-demo-run}
train="--train-data $out/data --index-path $out/index --config $(dirname "$0")/demo.yaml"

set -x
ragtrain data fetch demo --output-dir "$out/data"
ragtrain index prepare --passages "$out/data/passages.jsonl" --output-dir "$out/index"
ragtrain eval --test-data "$out/data/test.jsonl" --index-path "$out/index" --output-dir "$out/untrained"
ragtrain train rag $train --output-dir "$out/joint"
ragtrain train rag $train --output-dir "$out/frozen" --no-train-question-encoder
ragtrain eval --model-dir "$out/joint"
ragtrain eval --model-dir "$out/frozen"
ragtrain compare "$out/untrained" "$out/frozen" "$out/joint"
ragtrain compare "$out/frozen" "$out/joint"
