"""How a model is given frames and questions: tokens, features, positions, sizes, boxes."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from surgery_r1 import codec
from surgery_r1 import prompts as wording
from surgery_r1.codec import View
from surgery_r1.doctor.check import Found, Wrong, check
from surgery_r1.doctor.patient import Patient
from surgery_r1.evaluate.endpoint import EndpointEngine, find_served, open_client
from surgery_r1.evaluate.generation import GenerationOptions
from surgery_r1.evaluate.predict import prompt_of
from surgery_r1.models.encode import MemoryImage, Prompt, PromptEncoder, load_image
from surgery_r1.models.processor import view_of
from surgery_r1.models.reply_tokens import banned_for
from surgery_r1.models.sharing.attention import core

#: Image tokens of a frame beyond which more pixels were seen to cost accuracy as well as time.
_MANY_TOKENS = 4096
#: Pixels of the resized image by which an edge of a drawn box may be found elsewhere: resampling blurs it.
_BLUR = 1.5


@check(
    "model",
    proves="The model's folder is whole, and loads with the config's settings.",
    fix="see what stands above; copy the folder again",
)
def model(patient: Patient) -> Found:
    bundle = patient.load()
    empty = sorted(name for name, weight in bundle.model.named_parameters() if not bool(torch.isfinite(weight).all()))
    if empty:
        raise Wrong(f"{len(empty)} tensors hold numbers that are none, such as {empty[0]}")
    count = sum(weight.numel() for weight in bundle.model.parameters())
    figures = {"parameters": count, "stage": bundle.info.stage, "box_space": bundle.info.box_space}
    return Found(f"{count:,} parameters, stage {bundle.info.stage}", figures)


def ragged(patient: Patient) -> list[Prompt]:
    """Two training frames whole and one cut, so that sizes differ, with questions of different length."""
    samples = patient.samples(2)
    shown = [load_image(patient.dataset.image_path(sample)) for sample in samples]
    width, height = shown[0].size
    shown.append(shown[0].crop((0, 0, max(1, width // 3), height)))
    asked = ["What organ is being operated?", samples[-1].question, samples[0].question + " Look again, and closely."]
    texts = [wording.user_text(question) for question in asked]
    return [Prompt((MemoryImage(image),), text) for image, text in zip(shown, texts, strict=False)]


def as_trained(patient: Patient, prompts: list[Prompt]) -> Any:
    """The same prompts as TRL's trainers encode them: chat template and processor in one call, padded left."""
    bundle = patient.loaded
    chats = []
    for prompt in prompts:
        image, text = prompt.images[0], prompt.text
        system = wording.system_text(bundle.info.box_space)
        messages = wording.chat_messages(system, text)
        messages[1]["content"][0] = {"type": "image", "image": load_image(image)}
        chats.append(messages)
    return bundle.processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


@check(
    "image_tokens",
    proves="In a batch of frames of different size, each has as many tokens as features, marked as image and unpadded.",
    fix="restore preprocessor_config.json and tokenizer files of the model's own folder",
    needs=("model",),
)
def image_tokens(patient: Patient) -> Found:
    bundle = patient.loaded
    token = core(bundle.model).config.image_token_id
    batch = as_trained(patient, ragged(patient))
    ids, grids = batch["input_ids"], batch["image_grid_thw"]
    in_text = [int(row.eq(token).sum()) for row in ids]
    device = bundle.model.device
    with torch.inference_mode():
        tower = core(bundle.model).model.get_image_features(batch["pixel_values"].to(device), grids.to(device))
    features = [len(part) for part in getattr(tower, "pooler_output", tower)]
    if in_text != features:
        raise Wrong(f"tokens {in_text} in the text, features {features} from the tower")
    if (ids[:, -1] == bundle.tokenizer.pad_token_id).any():
        raise Wrong(
            "prompts are padded at their end, where a reply should begin", "set padding_side of the tokenizer to left"
        )
    marked = batch.get("mm_token_type_ids")
    if marked is None or not torch.equal(marked.bool(), ids == token):
        raise Wrong("mm_token_type_ids does not mark the image tokens of a padded batch", _upgrade())
    with torch.inference_mode():
        logits = bundle.model(**{name: value.to(device) for name, value in batch.items()}, logits_to_keep=1).logits
    if not bool(torch.isfinite(logits).all()):
        raise Wrong(
            "the model's logits of a batch are not finite", "try model.dtype = 'float32' and attention = 'eager'"
        )
    return Found(f"{', '.join(map(str, features))} of each in a batch of {len(features)}", {"image_tokens": features})


def _upgrade() -> str:
    return "install transformers and trl in the versions of constraints.txt"


@check(
    "positions",
    proves="A still image's rows and columns are numbered one by one, and text goes on behind the larger of them.",
    fix="install transformers in the version of constraints.txt",
    needs=("model", "image_tokens"),
)
def positions(patient: Patient) -> Found:
    base = core(patient.loaded.model)
    token, merge = base.config.image_token_id, base.config.vision_config.spatial_merge_size
    rows, columns, before, after = 2, 3, 4, 5
    ids = torch.full((1, before + rows * columns + after), 5)
    ids[0, before : before + rows * columns] = token
    grid = torch.tensor([[1, rows * merge, columns * merge]])
    device = base.device
    found, _ = base.model.get_rope_index(
        input_ids=ids.to(device), image_grid_thw=grid.to(device), mm_token_type_ids=(ids == token).int().to(device)
    )
    along = np.indices((1, rows, columns)).reshape(3, -1) + before
    text = np.arange(before), np.arange(after) + before + max(rows, columns)
    wanted = np.concatenate([np.tile(text[0], (3, 1)), along, np.tile(text[1], (3, 1))], axis=1)
    mine = found[:, 0].cpu().numpy()
    if not np.array_equal(mine, wanted):
        at = int(np.flatnonzero((mine != wanted).any(0))[0])
        raise Wrong(f"token {at} of a prompt stands at {mine[:, at].tolist()}, not at {wanted[:, at].tolist()}")
    return Found(f"a frame of {rows} x {columns} tokens")


@check(
    "limits",
    proves="Trainer, predictor and server resize frames alike: they read the same number of tokens in a prompt.",
    fix="use one preprocessor_config.json for all; leave pixel limits out of flags and configs of the server",
    needs=("model", "image_tokens"),
)
def limits(patient: Patient) -> Found:
    bundle, samples = patient.loaded, patient.samples(3)
    encoder = PromptEncoder(bundle.processor, bundle.info.box_space)
    prompts = [prompt_of(sample, patient.dataset) for sample in samples]
    trained = as_trained(patient, prompts)
    in_training = trained["attention_mask"].sum(-1).tolist()
    predicted = [len(prompt.ids) for prompt in encoder.tokens(prompts)[0]]
    counted = [encoder.token_count(prompt) for prompt in prompts]
    if not in_training == predicted == counted:
        raise Wrong(f"tokens of prompts: trainer {in_training}, predictor {predicted}, as counted {counted}")
    patch = bundle.processor.image_processor.patch_size
    for sample, grid in zip(samples, trained["image_grid_thw"].tolist(), strict=True):
        view = view_of(bundle.processor, sample.width, sample.height)
        if [grid[2] * patch, grid[1] * patch] != [view.input_width, view.input_height]:
            raise Wrong(
                f"a frame is resized to {grid[2] * patch} x {grid[1] * patch}, boxes are written for "
                f"{view.input_width} x {view.input_height}"
            )
    size = bundle.processor.image_processor.size
    merge = bundle.processor.image_processor.merge_size**2
    most = max(int(np.prod(grid)) // merge for grid in trained["image_grid_thw"].tolist())
    figures = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"], "image_tokens": most}
    said = f"{most} image tokens a frame at {size['longest_edge']:,} pixels; trainer and predictor alike"
    if most > _MANY_TOKENS:
        raise Wrong(
            f"a frame takes {most} image tokens at {size['longest_edge']:,} pixels",
            "set model.max_pixels, such as 1003520",
        )
    if patient.server is None:
        return Found(f"{said}; no server named", figures)
    _ask_server(patient, prompts)
    return Found(f"{said}; so is the server", {**figures, "server": "same tokens"})


def _ask_server(patient: Patient, prompts: list[Prompt]) -> None:
    """Let the server read the prompts; what it reads otherwise is an error there."""
    assert patient.server is not None
    bundle = patient.loaded
    client, local = open_client(patient.server, 1)
    with closing(client):
        served = find_served(client, patient.base, patient.server.served_model, local, allow_hub=patient.allowed.hub)
        asked = (client, served.name, bundle.processor, bundle.info.box_space, GenerationOptions(1, 1))
        engine = EndpointEngine(*asked, concurrency=1, banned=banned_for(bundle))
        for _ in engine.replies(prompts):
            pass


@check(
    "box",
    proves="A box drawn on a frame lies where the model is told, and is read back to where it was drawn.",
    fix="report this with the sizes: boxes would be trained in the wrong place",
    needs=("model", "image_tokens"),
)
def box(patient: Patient) -> Found:
    bundle, worst = patient.loaded, 0.0
    space, processor = bundle.info.box_space, bundle.processor
    samples = [(sample, sample.box_px) for sample in patient.samples(200) if sample.box_px is not None]
    for sample, true in samples:
        view = view_of(processor, sample.width, sample.height)
        written = codec.render(None, sample.answer, codec.to_model(true, space, view))
        back = codec.read_reply(written, space, view).box_px
        units = view.units(space)
        if back is None:
            raise Wrong(f"the box {true} is not read back from {written!r}")
        steps = (view.width / units[0], view.height / units[1]) * 2
        off = max(abs(a - b) / step for a, b, step in zip(true, back, steps, strict=True))
        worst = max(worst, off)
    if worst > 1.0:
        raise Wrong(f"a box comes back {worst:.1f} of the model's units from where it was")
    for size in dict.fromkeys((sample.width, sample.height) for sample in patient.samples(20)):
        _find_drawn(processor, *size)
    said = f"{len(samples)} boxes come back within {worst:.2f} units ({space})"
    return Found(
        f"{said}; a drawn one is where it is said to be", {"units_off": round(worst, 3), "boxes": len(samples)}
    )


def _find_drawn(processor: Any, width: int, height: int) -> None:
    """Draw a box, let the processor resize the frame, and look for it in the patches."""
    drawn = (width // 5, height // 4, width // 2, height * 4 // 5)
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle((drawn[0], drawn[1], drawn[2] - 1, drawn[3] - 1), fill="white")
    done = processor.image_processor(images=[image], return_tensors="pt")
    bright = picture(done["pixel_values"], done["image_grid_thw"][0], processor.image_processor)
    seen = bright > (bright.min() + bright.max()) / 2
    ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    found = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
    view = View(width, height, seen.shape[1], seen.shape[0])
    told = codec.to_model(drawn, "pixels", view_of(processor, width, height))
    if (view.input_width, view.input_height) != view.units("pixels") or max(
        abs(a - b) for a, b in zip(found, told, strict=True)
    ) > _BLUR:
        raise Wrong(
            f"a box drawn on a {width} x {height} frame is seen at {[*map(int, found)]}, and said to be at {told}"
        )


def picture(patches: torch.Tensor, grid: torch.Tensor, settings: Any) -> np.ndarray:
    """Brightness (height, width) of an image from its patches, which stand in blocks of merge x merge.

    Args:
        patches: (patches, channels * temporal * patch * patch).
        grid: temporal, height and width in patches.
    """
    merge, size, temporal = settings.merge_size, settings.patch_size, settings.temporal_patch_size
    _, high, wide = grid.tolist()
    blocks = patches.float().numpy().reshape(high // merge, wide // merge, merge, merge, 3, temporal, size, size)
    # Block row, row in it, pixel row; the same for columns.
    ordered = blocks[:, :, :, :, :, 0].mean(4).transpose(0, 2, 4, 1, 3, 5)
    return np.asarray(ordered.reshape(high * size, wide * size))
