#!/usr/bin/env bash
# Every row of the paper's table, over seeds of training, with intervals and a contrast registered before the first
# stage: base, SFT without and with chain of thought, RFT without and with coherence, and two controls.
#
# NOT YET RUN on real frames or real weights. A test runs it with the tiny config on a CPU. One process, one GPU; rows and
# files: docs/reproduce.md. Run it again after a stop: what is finished and made of the same is not done again.
#
#   DATASET=runs/endovis/dataset OUT=runs/reproduce-7b FLAGS=--allow-hub runs/reproduce.sh
set -euo pipefail

CONFIG=${CONFIG:-qwen2_5_vl_7b}           # a shipped config, or a TOML file
DATASET=${DATASET:?the folder that surgery-r1 data build wrote}
OUT=${OUT:-runs/reproduce-$CONFIG}        # gets contrast.toml, seedN/, table.md, table.tex and report.html
read -ra seeds <<<"${SEEDS:-0 1 2}"       # of training; more may be added later
read -ra set <<<"${SET:-}"                # values of the config: "sft.batch_size=8 rft.max_steps=200"
read -ra flags <<<"${FLAGS:-}"            # "--allow-hub", "--rows base sft rft", "--contrast mine.toml"

# See: the contrast with its sha256 and time, then a line for each stage, then the tables: not measured yet.
# Pictures of frames stay out, so that no frame leaves with the report.
surgery-r1 reproduce --config "$CONFIG" --data "$DATASET" --out "$OUT" --no-frames --seeds "${seeds[@]}" \
  --set "${set[@]}" "${flags[@]}"
