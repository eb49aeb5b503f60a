#!/usr/bin/env bash
# SFT, then RFT whose replies come from a vLLM server on a GPU of its own: the last GPU serves, the others train.
#
# NOT YET RUN on a GPU. A test runs it on a CPU as far as that goes, with a server of its own.
#
#   DATASET=... OUT=runs/7b NPROC=7 SET="rft.prompts=7 sft.batch_size=7" runs/vllm_rollouts.sh
#
# Variables are those of runs/stages.sh; NPROC counts the GPUs that train. vLLM may lie in an environment of its own
# (VLLM=/path/to/bin/vllm). What the server must be and what is checked: docs/engines.md.
set -euo pipefail

CONFIG=${CONFIG:-qwen2_5_vl_7b}
DATASET=${DATASET:?the folder that surgery-r1 data build wrote}
OUT=${OUT:-runs/$CONFIG}
NPROC=${NPROC:-1}
RANK=${RANK:-64}              # of the adapter, as in the config
PORT=${PORT:-8000}
VLLM=${VLLM:-vllm}
SERVE=${SERVE:---enable-lora} # empty where all weights are trained
stages=$(dirname "$0")/stages.sh
export CONFIG DATASET OUT NPROC
export CUDA_VISIBLE_DEVICES
CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((NPROC - 1)))

# SFT alone; see runs/stages.sh for what to see.
ONLY=sft "$stages"

# The server begins with the SFT model, and gets an adapter (or all weights) at every step.
[ -f "$OUT/start/config.json" ] || surgery-r1 export "$OUT/sft" "$OUT/start"
serve=(serve "$(realpath "$OUT/start")" --host 127.0.0.1 --port "$PORT")
[ -z "$SERVE" ] || serve+=("$SERVE" --max-lora-rank "$RANK")
CUDA_VISIBLE_DEVICES=$NPROC VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 \
  "$VLLM" "${serve[@]}" >"$OUT/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null && wait "$server" || true' EXIT

# See: nothing, for some minutes; the server's own words are in OUT/server.log.
until curl -fs "http://127.0.0.1:$PORT/health" >/dev/null; do
  kill -0 "$server" 2>/dev/null || { tail -n 20 "$OUT/server.log" >&2; exit 1; }
  sleep 2
done

# See: sampler/gap_mean of OUT/rft/metrics.jsonl below .1 (in bfloat16); the run stops above it.
SET="${SET:-} rft.rollouts=server" RFT_FLAGS="${RFT_FLAGS:-} --endpoint http://127.0.0.1:$PORT/v1" "$stages"
