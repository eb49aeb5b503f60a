"""A pack of a frame's rows has the loss and gradients of the same rows in a plain batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from surgery_r1 import codec, prompts
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.processor import load_processor
from surgery_r1.models.save import save_processor
from surgery_r1.models.sharing import attention as tree_attention
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train.sharing.sft_packing import FramePackCollator, fill_packs, image_grids, pack_rows


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A random model, its processor, and a stock dataset of 7 rows on 2 frames."""
    folder = tmp_path_factory.mktemp("packing")
    tokenizer = tiny.build_tokenizer(tiny_text.corpus())
    model = tiny.build_model(tiny.build_config(tokenizer), seed=1)
    assert tree_attention.enable(model)
    tokenizer.save_pretrained(folder)
    tiny.build_image_processor().save_pretrained(folder)
    processor = load_processor(folder, "qwen2_5_vl")
    save_processor(processor, "qwen2_5_vl", folder)
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (128, 160, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    columns = {"prompt": [], "completion": [], "images": [], "flips": []}
    for i in range(7):
        box = None if i % 3 == 0 else (i, 2, 50 + i, 60)
        text = codec.render("it is seen" if i % 2 else None, f"answer {i}", box)
        columns["prompt"].append(
            [
                {"role": "system", "content": prompts.system_text("norm100")},
                {"role": "user", "content": prompts.user_text(f"Question {'long ' * i}?", "cot", bool(i % 2))},
            ]
        )
        columns["completion"].append([{"role": "assistant", "content": text}])
        columns["images"].append([str(folder / f"{'ab'[i % 2]}.png")])
        columns["flips"].append(["none"])
    return model, processor, Dataset.from_dict(columns)


def collator(model, processor):
    return FramePackCollator(processor, prompts.system_text("norm100"), model.model.get_rope_index)


def test_loss_and_gradients_equal_trls_plain_batch(parts):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    model, processor, rows = parts
    packs = pack_rows(rows, per_frame=3)
    assert [len(pack["prompt"]) for pack in packs] == [3, 1, 3]
    opened = [{**row, "images": [Image.open(path).convert("RGB") for path in row["images"]]} for row in rows]
    plain = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(opened)
    packed = collator(model, processor)([packs[i] for i in range(len(packs))])
    assert (packed["labels"] != -100).sum() == (plain["labels"] != -100).sum() > 100
    assert packed["input_ids"].numel() < plain["input_ids"].numel()
    results = []
    for batch in (plain, packed):
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (loss, grads), (ours, our_grads) = results
    assert ours == pytest.approx(loss, abs=2e-6)
    largest = max(grad.abs().max().item() for grad in grads.values())
    for name, grad in grads.items():
        assert (our_grads[name] - grad).abs().max() < 1e-5 * largest, name


def test_packs_fill_a_token_budget(parts):
    model, processor, rows = parts
    packs = pack_rows(rows, per_frame=2)
    collate = collator(model, processor)
    plain = packs.with_format(None)
    sizes = [collate.size(pack, torch.from_numpy(image_grids(pack["images"], processor))) for pack in plain]
    assert sizes == [collate([packs[i]])["input_ids"].numel() for i in range(len(packs))]
    budget = max(sizes) + min(sizes)
    filled = fill_packs(packs, sizes, budget)
    totals = [collate([filled[i]])["input_ids"].numel() for i in range(len(filled))]
    assert max(totals) <= budget and len(filled) < len(packs)
    texts = sorted(text for pack in filled.with_format(None) for text in pack["completion"])
    assert texts == sorted(row[0]["content"] for row in rows["completion"])
    with pytest.raises(SurgeryR1Error, match=r"pack_tokens = 50 is less than the \d+ tokens"):
        fill_packs(packs, sizes, 50)


def test_every_row_is_in_one_pack_and_packs_are_seeded(parts):
    _, _, rows = parts
    packs = pack_rows(rows, per_frame=2, seed=4)
    texts = sorted(text for pack in packs for text in pack["completion"])
    assert texts == sorted(row[0]["content"] for row in rows["completion"])
    assert packs["completion"] == pack_rows(rows, per_frame=2, seed=4)["completion"]
    assert packs["completion"] != pack_rows(rows, per_frame=2, seed=5)["completion"]


def test_a_template_that_puts_the_question_first_is_refused(parts):
    model, processor, rows = parts
    packs = pack_rows(rows, per_frame=3)
    template = processor.chat_template
    processor.chat_template = "{{ messages[1].content[1].text }}<|vision_start|><|image_pad|><|vision_end|>"
    try:
        with pytest.raises(SurgeryR1Error, match="before the end of the image"):
            collator(model, processor)([packs[0]])
    finally:
        processor.chat_template = template
