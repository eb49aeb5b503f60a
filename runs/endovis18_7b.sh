#!/usr/bin/env bash
# From the downloads to the table: Qwen2.5-VL-7B on EndoVis-18-VQLA, cross-set EndoVis-17-VQLA.
#
# NOT YET RUN on real frames or real weights. The number behind "see" must come out; "not measured yet" means that
# nobody knows it. Needs one GPU with 48 GB or more (our estimate, not measured).
# How to get the data: docs/getting_the_data.md. Research use only.
#
#   ENDOVIS18=... FRAMES=... ENDOVIS17=... runs/endovis18_7b.sh
#
# Run it again after a stop: what is finished is not done again. Prediction and training go on where they were, a build
# begins anew. Variables of runs/stages.sh (NPROC, SET, ...) are passed on to it.
set -euo pipefail

ENDOVIS18=${ENDOVIS18:-data/EndoVis-18-VQLA}  # labels
FRAMES=${FRAMES:-data/EndoVis-18}             # images of the challenge, anywhere below
ENDOVIS17=${ENDOVIS17:-data/EndoVis-17-VQLA}  # labels and images
CONFIG=${CONFIG:-qwen2_5_vl_7b}               # a shipped config, or a TOML file
BASE=${BASE:-Qwen/Qwen2.5-VL-7B-Instruct}     # what the config trains, for the first row of the table
DATASET=${DATASET:-runs/endovis/dataset}
OUT=${OUT:-runs/endovis/$CONFIG}

# See: 9,014 questions in train and dev together, 2,769 in val. "No errors."
surgery-r1 data check "$ENDOVIS18" --images "$FRAMES" --sheet "$(dirname "$ENDOVIS18")/sheet18.png"

# See: 472 questions in test. "No errors." With the above: 9,014 + 2,769 + 472.
surgery-r1 data check "$ENDOVIS17" --sheet "$(dirname "$ENDOVIS17")/sheet17.png"

# See: 54,084 training rows: 18,028 visual_qa, 18,028 grounding_qa, 18,028 cot.
# The location rule of real labels and its agreement: not measured yet.
[ -f "$DATASET/manifest.json" ] ||
  surgery-r1 data build "$ENDOVIS18" "$ENDOVIS17" --images "$FRAMES" --config surgery_r1_54k --out "$DATASET" --stats

# See: nothing that was compared has changed since it was built.
surgery-r1 data check "$DATASET"

# The base model before training, on val and on the cross-set. Its table also shows the no-image floor.
# Acc, mIoU and floor: not measured yet. --allow-hub downloads the weights once. The base sees frames within the pixel
# limits of its own folder, the trained models within those of the config.
for split in val test; do
  [ -f "$OUT/base/$split/predictions.jsonl" ] ||
    surgery-r1 predict --model "$BASE" --data "$DATASET" --split "$split" --dtype bfloat16 \
      --out "$OUT/base/$split/predictions.jsonl" --allow-hub
  # See: the table of one row and the floor; not measured yet.
  surgery-r1 score "$OUT/base/$split/predictions.jsonl" --data "$DATASET" --split "$split" --out "$OUT/base/$split"
done

# SFT, stopped early when dev no longer improves, then RFT with format, answer, box and coherence. joint on dev, hours and
# memory: not measured yet; estimates, and the same on several GPUs, are in docs/recipes.md.
CONFIG="$CONFIG" DATASET="$DATASET" OUT="$OUT" FLAGS="--allow-hub ${FLAGS:-}" "$(dirname "$0")/stages.sh"

# Both models on val and on the cross-set: not measured yet.
for stage in sft rft; do
  for split in val test; do
    [ -f "$OUT/$stage-$split/predictions.jsonl" ] ||
      surgery-r1 predict --model "$OUT/$stage" --data "$DATASET" --split "$split" \
        --out "$OUT/$stage-$split/predictions.jsonl" --allow-hub
    # See: the table of one row and the floor; not measured yet.
    surgery-r1 score "$OUT/$stage-$split/predictions.jsonl" --data "$DATASET" --split "$split" --out "$OUT/$stage-$split"
  done
done

# The table, with intervals, curves and every question. Pictures of frames stay out, so that no frame leaves with the file.
surgery-r1 report "$OUT/sft" "$OUT/rft" "$OUT/base" "$OUT/sft-val" "$OUT/rft-val" "$OUT/sft-test" "$OUT/rft-test" \
  --out "$OUT/report.html" --no-frames

# A folder that vLLM and transformers serve, with a model card. Its size: not measured yet.
[ -f "$OUT/model/config.json" ] || surgery-r1 export "$OUT/rft" "$OUT/model" --allow-hub
