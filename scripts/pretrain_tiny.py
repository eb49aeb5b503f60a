"""Pretrain the tiny base on generic grounding and description of drawn scenes.

    python scripts/pretrain_tiny.py scripts/pretrain_tiny.toml --out runs/pretrain

One process draws scenes into a queue, one trains. The schedule is warm-up, constant, then a linear decay over the last
``decay`` steps; ``--resume`` continues from the last checkpoint, and a run stopped in its constant part can be resumed
with another ``steps``. Auxiliary losses (what lies at an image token, its place and box, and where some heads look) are
not part of the shipped model; ``docs/tiny_base`` tells what each is for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing as mp
import random
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from surgery_r1 import codec, geometry, prompts, vocab
from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text

NAMES = (*vocab.TOOLS, vocab.ORGAN)
GRID_W, GRID_H = 6, 5
#: Centre of each image token as a fraction of the frame, (30, 2), in the order of the tokens.
CENTRES = torch.tensor([[(x + 0.5) / GRID_W, (y + 0.5) / GRID_H] for y in range(GRID_H) for x in range(GRID_W)])
WIDTH, HEIGHT = GRID_W * 28, GRID_H * 28


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the TOML sets. ``steps`` counts optimiser steps of ``scenes`` scenes with ``tasks`` requests each.

    Every step adds ``fresh`` newly drawn scenes to a pool of at most ``pool``, out of which it trains.
    """

    seed: int
    steps: int
    decay: int
    warmup: int
    scenes: int
    tasks: int
    pool: int
    fresh: int
    muon_lr: float
    adamw_lr: float
    weight_decay: float
    auxiliary: float
    smoothing: float
    draw_size: tuple[int, int]
    save_every: int
    threads: int


@dataclasses.dataclass
class Scene:
    """Pixels (140, 168, 3) uint8; per object name, state, location, box in model units, tip in cells or None."""

    pixels: np.ndarray
    objects: list[tuple[str, str | None, str | None, tuple[int, int, int, int]]]
    tips: list[tuple[int, int] | None]


def draw(rng: random.Random, size: tuple[int, int]) -> Scene:
    from surgery_r1.synthetic import draw_random_scene

    drawn = draw_random_scene(rng, size)
    view = codec.View(size[0], size[1], WIDTH, HEIGHT)
    pixels = np.asarray(drawn.image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    objects = [(o.name, o.state, o.location, tiny_text.to_units(o.box_px, view)) for o in drawn.objects]
    tips = []
    for o in drawn.objects:
        x, y = o.tip_px or geometry.center(o.box_px)
        cell = (min(max(int(x / size[0] * GRID_W), 0), GRID_W - 1), min(max(int(y / size[1] * GRID_H), 0), GRID_H - 1))
        tips.append(cell)
    return Scene(pixels, objects, tips)


def producer(queue: Any, seed: int, size: tuple[int, int]) -> None:
    """Draw scenes for ever; the parent ends the process."""
    rng = random.Random(seed)
    while True:
        queue.put([draw(rng, size) for _ in range(16)])


class Batcher:
    """Scenes to one packed batch: all requests of a scene stand behind its one image, hidden from each other."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tok = tokenizer
        self.cache: dict[str, list[int]] = {}
        chat = tokenizer.apply_chat_template(prompts.messages("\x00", tiny.BOX_SPACE), tokenize=False)
        head, _, tail = chat.partition("\x00")
        head = head.replace("<|image_pad|>", "<|image_pad|>" * GRID_W * GRID_H)
        self.head = self.encode(head)
        self.turn = self.encode(tail + "<|im_start|>assistant\n")
        self.end = self.encode("<|im_end|>")
        # Names are single tokens with the blank before them.
        self.names = {self.encode(f" {name}")[0]: name for name in NAMES}
        self.image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids = torch.tensor([self.head])
        types = (ids == self.image_id).int()
        grid = torch.tensor([[1, GRID_H * 2, GRID_W * 2]])
        positions, _ = model.model.get_rope_index(ids, types, image_grid_thw=grid)
        self.head_positions = positions[:, 0].numpy()
        self.next = int(self.head_positions.max()) + 1

    def encode(self, text: str) -> list[int]:
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tok(text, add_special_tokens=False)["input_ids"]
        return self.cache[text]

    def __call__(self, scenes: list[Scene], count: int, rng: random.Random) -> tuple[Any, ...]:
        rows = []
        for scene in scenes:
            pairs = tiny_text.tasks(scene.objects, rng, count)
            rows.append([(self.encode(q) + self.turn, self.encode(a) + self.end) for q, a in pairs])
        head = len(self.head)
        length = head + max(sum(len(p) + len(r) for p, r in row) for row in rows)
        ids = np.full((len(rows), length), self.tok.pad_token_id)
        labels = np.full((len(rows), length), -100)
        branch = np.full((len(rows), length), -1)
        positions = np.zeros((3, len(rows), length), np.int64)
        looks: list[tuple[int, int, int, int]] = []
        reads: list[tuple[int, int, int]] = []
        first_image = self.head.index(self.image_id)
        for i, row in enumerate(rows):
            ids[i, :head], branch[i, :head], positions[:, i, :head] = self.head, 0, self.head_positions
            at = head
            for j, (prompt, reply) in enumerate(row):
                end = at + len(prompt) + len(reply)
                ids[i, at:end] = prompt + reply
                labels[i, at + len(prompt) : end] = reply
                branch[i, at:end] = j + 1
                positions[:, i, at:end] = np.arange(self.next, self.next + end - at)
                named = next((k for k, t in enumerate(prompt) if t in self.names), None)
                if named is not None:
                    which = [o[0] for o in scenes[i].objects].index(self.names[prompt[named]])
                    x, y = scenes[i].tips[which]
                    looks.append((i, at + named, first_image + y * GRID_W + x, which))
                    reads += [(i, k, at + named) for k in range(at + len(prompt) - 1, end - 1)]
                at = end
        b = torch.from_numpy(branch)
        order = torch.arange(length)
        mask = ((b[:, :, None] == b[:, None, :]) | (b[:, None, :] == 0)) & (order[:, None] >= order[None, :])
        mask |= torch.eye(length, dtype=torch.bool)
        # Additive, as eager attention takes it.
        added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        arrays = (torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(positions))
        return *arrays, added[:, None], torch.tensor(looks).T, torch.tensor(reads).T


def patches(scenes: list[Scene], rng: np.random.Generator | None, mean: Any, std: Any) -> torch.Tensor:
    """Normalised patches in Qwen's order, (scenes * 120, 1176); with ``rng``, light and colour are jittered."""
    x = np.stack([s.pixels for s in scenes]).astype(np.float32) / 255
    if rng is not None:
        gain = rng.uniform(0.8, 1.2, (len(x), 1, 1, 1)) * rng.uniform(0.9, 1.1, (len(x), 1, 1, 3))
        x = np.clip(x * gain.astype(np.float32), 0, 1) ** rng.uniform(0.8, 1.25, (len(x), 1, 1, 1)).astype(np.float32)
        x += rng.normal(0, 0.015, x.shape).astype(np.float32)
    x = ((x - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    x = x.reshape(len(scenes), 3, GRID_H, 2, 14, GRID_W, 2, 14).transpose(0, 2, 5, 3, 6, 1, 4, 7)
    x = np.repeat(x[:, :, :, :, :, :, None], 2, axis=6)
    return torch.from_numpy(np.ascontiguousarray(x.reshape(len(scenes) * GRID_H * GRID_W * 4, -1)))


def auxiliary_targets(scenes: list[Scene]) -> tuple[torch.Tensor, ...]:
    """Per image token: object at whose tip (organ: centre) it lies, its state and box (0..1)."""
    cells = GRID_W * GRID_H
    name = np.full((len(scenes), cells), len(NAMES))
    state = np.full((len(scenes), cells), -100)
    box = np.zeros((len(scenes), cells, 4), np.float32)
    for i, scene in enumerate(scenes):
        # Tools overwrite the organ where both fall on one cell.
        for o, tip in sorted(zip(scene.objects, scene.tips, strict=True), key=lambda p: p[0][1] is not None):
            c = tip[1] * GRID_W + tip[0]
            name[i, c] = NAMES.index(o[0])
            state[i, c] = -100 if o[1] is None else vocab.STATES.index(o[1])
            box[i, c] = np.array(o[3]) / 100
    return tuple(torch.from_numpy(a.reshape(len(scenes) * cells, *a.shape[2:])) for a in (name, state, box))


class Trainer:
    def __init__(self, settings: Settings, out: Path) -> None:
        self.s, self.out = settings, out
        self.tok = tiny.build_tokenizer(tiny_text.corpus())
        self.model = tiny.build_model(tiny.build_config(self.tok), settings.seed)
        # After the vision tower: what lies at a token, and its box relative to the token (the tower knows no absolute
        # place). After language layers 1 and 2: the token's own place, and the box in the frame. After layer 3, at a
        # name in the request: state and box of what it names.
        self.model.model.language_model.config._attn_implementation = "eager"  # gives attention weights
        self.head = torch.nn.ModuleDict(
            {
                "tower": torch.nn.Linear(128, len(NAMES) + 1 + len(vocab.STATES) + 4),
                "place": torch.nn.Linear(128, 2),
                "box": torch.nn.Linear(128, 4),
                "named": torch.nn.Linear(128, len(vocab.STATES) + 4),
            }
        )
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in (*self.model.parameters(), *self.head.parameters()) if id(p) not in chosen]
        decay = settings.weight_decay
        self.optimisers = [
            torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.98), weight_decay=decay),
        ]
        self.batcher = Batcher(self.tok, self.model)
        processor = tiny.build_image_processor()
        self.mean, self.std = processor.image_mean, processor.image_std
        ids = self.tok.convert_tokens_to_ids
        self.image_id = ids("<|image_pad|>")
        self.numbers = torch.tensor([ids(n) for n in tiny.NUMBER_TOKENS])
        self.number_of = torch.full((len(self.tok),), -1)
        self.number_of[self.numbers] = torch.arange(101)
        self.step = 0
        self.seconds = 0.0

    def rate(self) -> float:
        """Multiplier of the learning rates at this step."""
        left = (self.s.steps - self.step) / self.s.decay
        return min(1.0, (self.step + 1) / self.s.warmup, max(left, 0.02))

    def loss(self, scenes: list[Scene], rng: random.Random, noise: np.random.Generator) -> tuple[Any, dict[str, float]]:
        ids, labels, positions, mask, looks, reads = self.batcher(scenes, self.s.tasks, rng)
        core = self.model.model
        grid = torch.tensor([[1, GRID_H * 2, GRID_W * 2]] * len(scenes))
        image = torch.cat(core.get_image_features(patches(scenes, noise, self.mean, self.std), grid).pooler_output, 0)
        embeds = core.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == self.image_id)[..., None], image.to(embeds.dtype))
        output = core.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )
        first, second = (output.hidden_states[i][ids == self.image_id] for i in (1, 2))
        hidden = output.last_hidden_state
        # In layers 2 and 3 one head of a name looks at the tip of what it names, in layer 4 two heads of the reply look
        # at the name. Left to itself a model of this size takes far longer to find that path.
        row, name_at, tip_at, which = looks
        aux_look = -sum((output.attentions[i][row, 0, name_at, tip_at] + 1e-6).log().mean() for i in (1, 2))
        named = self.head["named"](output.hidden_states[3][row, name_at])
        objects = [scenes[i].objects[k] for i, k in zip(row.tolist(), which.tolist(), strict=True)]
        named_state = torch.tensor([-100 if o[1] is None else vocab.STATES.index(o[1]) for o in objects])
        named_box = torch.tensor([o[3] for o in objects]) / 100
        states = len(vocab.STATES)
        aux_named_state = torch.nn.functional.cross_entropy(named[:, :states], named_state, ignore_index=-100)
        aux_named_box = (named[:, states:] - named_box).abs().mean()
        row, reply_at, name_at = reads
        aux_look = aux_look - 0.25 * sum(
            (output.attentions[3][row, head, reply_at, name_at] + 1e-6).log().mean() for head in (0, 1)
        )
        target = labels[:, 1:]
        wanted = target != -100
        logits = self.model.lm_head(hidden[:, :-1][wanted])
        aux = self.head["tower"](image)
        logp = logits.log_softmax(-1)
        target = target[wanted]
        nll = -logp.gather(1, target[:, None])[:, 0]
        number = self.number_of[target]
        is_number = number >= 0
        if self.s.smoothing > 0:
            # Neighbouring numbers are nearly right: a soft target around the true corner.
            distance = (torch.arange(101)[None] - number[is_number][:, None]).float()
            soft = torch.softmax(-(distance**2) / (2 * self.s.smoothing**2), -1)
            nll = nll.clone()
            nll[is_number] = -(soft * logp[is_number][:, self.numbers]).sum(-1)
        name, state, box = auxiliary_targets(scenes)
        n = len(NAMES) + 1
        weight = torch.ones(n)
        weight[-1] = 0.1
        here = name < len(NAMES)
        aux_name = torch.nn.functional.cross_entropy(aux[:, :n], name, weight=weight)
        aux_state = torch.nn.functional.cross_entropy(aux[:, n : n + 13], state, ignore_index=-100)
        centre = CENTRES.repeat(len(scenes), 1)
        corner = centre.repeat(1, 2)
        aux_box = (aux[:, n + 13 :][here] - (box - corner)[here]).abs().mean()
        aux_place = (self.head["place"](first) - centre).abs().mean()
        aux_frame = (self.head["box"](second)[here] - box[here]).abs().mean()
        loss = nll.mean() + self.s.auxiliary * (
            3 * aux_name
            + aux_state
            + aux_named_state
            + aux_look
            + 4 * (aux_box + aux_place + aux_frame + aux_named_box)
        )
        return loss, {
            "loss": nll.mean().item(),
            "number": nll[is_number].mean().item(),
            "word": nll[~is_number].mean().item(),
            "aux_name": aux_name.item(),
            "aux_state": aux_state.item(),
            "aux_box": aux_box.item(),
            "aux_place": aux_place.item(),
            "aux_frame": aux_frame.item(),
            "aux_look": aux_look.item(),
            "aux_named_state": aux_named_state.item(),
            "aux_named_box": aux_named_box.item(),
        }

    def update(self, loss: Any) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        base = (self.s.muon_lr, self.s.adamw_lr)
        for optimiser, lr in zip(self.optimisers, base, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * self.rate()
            optimiser.step()
        self.step += 1

    @torch.no_grad()
    def evaluate(self, scenes: list[Scene]) -> dict[str, float]:
        """Greedy: mean IoU of boxes, and the share of cues named right, on scenes of styles never trained on."""
        self.model.eval()
        requests, truths = [], []
        rng = random.Random(5)
        for scene in scenes:
            o = rng.choice(scene.objects)
            requests.append((scene, f"Detect the {o[0]}. Reply with box."))
            truths.append(o)
            o = rng.choice([o for o in scene.objects if o[1]])
            requests.append((scene, f"Describe the {o[0]}. Reply with think and box."))
            truths.append(o)
        texts = []
        b = self.batcher
        for i in range(0, len(requests), 100):
            part = requests[i : i + 100]
            rows = [b.head + b.encode(q) + b.turn for _, q in part]
            longest = max(map(len, rows))
            pad = self.tok.pad_token_id
            ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows])
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
                pixel_values=patches([s for s, _ in part], None, self.mean, self.std),
                image_grid_thw=torch.tensor([[1, GRID_H * 2, GRID_W * 2]] * len(part)),
                mm_token_type_ids=(ids == self.image_id).int(),
                max_new_tokens=40,
                do_sample=False,
            )
            texts += self.tok.batch_decode(out[:, longest:], skip_special_tokens=True)
        overlap, cue = [], []
        for text, truth in zip(texts, truths, strict=True):
            reply = codec.parse(text)
            overlap.append(geometry.iou(reply.box_model, truth[3]) if reply.box_model else 0.0)
            if not text.startswith("<box>"):
                cue.append(truth[1] is not None and tiny_text.CUES[truth[1]] in str(reply.rationale))
        self.model.train()
        return {"miou": float(np.mean(overlap)), "cue": float(np.mean(cue)), "n": len(scenes)}

    def save(self, name: str) -> None:
        folder = self.out / name
        self.model.save_pretrained(folder)
        self.tok.save_pretrained(folder)
        tiny.build_image_processor().save_pretrained(folder)
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.out / "state.pt.partial"
        torch.save(state, temporary)
        temporary.replace(self.out / "state.pt")

    def resume(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", type=Path, help="state.pt of an earlier run to take the weights from")
    args = parser.parse_args()
    data = tomllib.loads(args.config.read_text())
    settings = Settings(**{**data, "draw_size": tuple(data["draw_size"])})
    torch.set_num_threads(settings.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, args.out)
    if args.resume:
        trainer.resume()
    elif args.init:
        state = torch.load(args.init, weights_only=True)
        trainer.model.load_state_dict(state["model"])
        trainer.head.load_state_dict(state["head"])
    context = mp.get_context("spawn")
    queue = context.Queue(maxsize=4)
    # Seeds move on with the step, so that a resumed run sees new scenes.
    seed = settings.seed * 1_000_003 + trainer.step
    worker = context.Process(target=producer, args=(queue, seed + 1, settings.draw_size), daemon=True)
    worker.start()
    held_rng = random.Random(987_654_321)
    held = [draw(held_rng, settings.draw_size) for _ in range(200)]
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    pool: list[Scene] = []
    parts: list[dict[str, float]] = []
    log = (args.out / "log.jsonl").open("a")
    drawn = steps_here = 0
    print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters", flush=True)
    trainer.model.train()
    while trainer.step < settings.steps:
        # A few fresh scenes a step keep the drawing process from starving the training one.
        while drawn < 256 + settings.fresh * steps_here:
            fresh = queue.get()
            drawn += len(fresh)
            for scene in fresh:
                if len(pool) < settings.pool:
                    pool.append(scene)
                else:
                    pool[rng.randrange(settings.pool)] = scene
        start = time.time()
        loss, values = trainer.loss(rng.sample(pool, settings.scenes), rng, noise)
        trainer.update(loss)
        steps_here += 1
        trainer.seconds += time.time() - start
        parts.append(values)
        if trainer.step % 50 == 0 or trainer.step == settings.steps:
            line = {k: round(float(np.mean([p[k] for p in parts])), 4) for k in parts[0]}
            parts.clear()
            line |= {"step": trainer.step, "drawn": drawn}
            line |= {"seconds": round(trainer.seconds), "rate": round(trainer.rate(), 3)}
            if trainer.step % settings.save_every == 0 or trainer.step == settings.steps:
                line |= trainer.evaluate(held)
                trainer.save("final" if trainer.step == settings.steps else "last")
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(json.dumps(line), flush=True)
    worker.terminate()
    if math.isnan(loss.item()):
        raise SystemExit("the loss is not a number")


if __name__ == "__main__":
    main()
