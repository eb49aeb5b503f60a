#!/usr/bin/env bash
# SFT, then RFT, on the GPUs of one machine. Run it again after a stop: it goes on from the last checkpoint, and what is
# finished is not done again. Ends with 75 where training was told to stop (SIGTERM) and has saved.
#
# NOT YET RUN on a GPU. Batches, memory and hours: docs/recipes.md. A test runs it with the tiny config on a CPU.
#
#   DATASET=runs/endovis/dataset OUT=runs/7b NPROC=8 SET="sft.batch_size=8" runs/stages.sh
set -euo pipefail

CONFIG=${CONFIG:-qwen2_5_vl_7b}           # a shipped config, or a TOML file
DATASET=${DATASET:?the folder that surgery-r1 data build wrote}
OUT=${OUT:-runs/$CONFIG}                  # gets sft/ and rft/
NPROC=${NPROC:-1}                         # GPUs of this machine, a process on each
read -ra set <<<"${SET:-}"                # values of the config: "sft.batch_size=8 rft.max_steps=200"
read -ra flags <<<"${FLAGS:-}"            # flags of both stages: "--allow-hub"
read -ra rft_flags <<<"${RFT_FLAGS:-}"    # flags of RFT alone
ONLY=${ONLY:-}                            # "sft" ends after SFT
read -ra launch <<<"${LAUNCH:-}"          # what starts the processes, where it is not torchrun on this machine

if [ ${#launch[@]} -eq 0 ]; then
  launch=(python)
  [ "$NPROC" -eq 1 ] || launch=(torchrun --nproc_per_node "$NPROC")
fi

# A step may take longer than the 30 seconds after which torchrun (accelerate launch too) kills what still runs.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

# bash waits for the training that it has started, which gets a SIGTERM of its own from whoever stops a job.
told=
trap 'told=1' TERM

finished() { grep -qs '"stopped": *false' "$OUT/$1/result.json"; }
resume() { [ ! -f "$OUT/$1/run.json" ] || echo --resume; }
ended() { # stage, exit status
  if [ "$2" -eq 0 ] && finished "$1"; then return; fi
  if [ -z "$told" ] && [ "$2" -ne 0 ]; then exit "$2"; fi
  echo "$1 was stopped; the same line goes on" >&2
  exit 75
}

# See: "best on dev: joint J at step N". J on real frames: not measured yet; .62 with the demo's tiny model and scenes.
if ! finished sft; then
  status=0
  "${launch[@]}" -m surgery_r1 train sft --config "$CONFIG" --data "$DATASET" --out "$OUT/sft" \
    --set "${set[@]}" $(resume sft) "${flags[@]}" || status=$?
  ended sft "$status"
fi
if [ "$ONLY" = sft ]; then exit 0; fi

# See: the same line, with a J that is not below SFT's, because dev may keep the start. .64 with the tiny model.
if ! finished rft; then
  status=0
  "${launch[@]}" -m surgery_r1 train rft --config "$CONFIG" --data "$DATASET" --model "$OUT/sft" --out "$OUT/rft" \
    --set "${set[@]}" $(resume rft) "${flags[@]}" "${rft_flags[@]}" || status=$?
  ended rft "$status"
fi
