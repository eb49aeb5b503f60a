"""Log-probabilities of a GRPO batch with each prompt computed once for all its completions.

TRL repeats frame and prompt for every completion. Here the completions of a prompt stand behind it in one sequence,
hidden from each other, each starting with a copy of the prompt's last token and at the position that follows it. The
log-probabilities and gradients are those of the plain way, to rounding. One method of TRL's GRPOTrainer is overridden;
``tests/test_shared_prompt.py`` compares both and fails when TRL's changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from trl import GRPOTrainer

from surgery_r1.models.vision_cache import content_keys


class Layout(NamedTuple):
    """A packed batch of ``n`` prompts of length P with up to G completions of length C each; L = P - 1 + G * C.

    Attributes:
        ids, labels: (n, L); labels are the token that follows, -100 where there is none to score.
        mask: (n, 1, L, L), True where a token (row) sees another (column).
        positions: (3, n, L).
        first: index of the first row of each prompt, for its images.
        slots: for each row of the batch its (prompt, completion) place.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    first: list[int]
    slots: tuple[torch.Tensor, torch.Tensor]


def pack(
    ids: torch.Tensor, attention: torch.Tensor, prompt_positions: torch.Tensor, keep: int, keys: list[bytes]
) -> Layout:
    """Pack rows whose ``keys`` and prompts are equal behind one copy of their prompt.

    Args:
        ids, attention: (rows, P + C), prompts padded on the left, completions on the right.
        prompt_positions: (3, rows, P), M-RoPE positions of the prompts.
        keep: C, the number of completion tokens.
        keys: what else must be equal for two rows to share a prompt: their images.
    """
    size = ids.shape[1] - keep
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault((key, ids[row, :size].cpu().numpy().tobytes()), []).append(row)
    members = list(groups.values())
    n, most, device = len(members), max(map(len, members)), ids.device
    first = [group[0] for group in members]
    prompt = torch.tensor([i for i, group in enumerate(members) for _ in group], device=device)
    place = torch.tensor([j for group in members for j in range(len(group))], device=device)
    source = torch.tensor([r for group in members for r in group], device=device)

    text = ids.new_zeros((n, most, keep))
    real = torch.zeros((n, most, keep), dtype=torch.bool, device=device)
    text[prompt, place], real[prompt, place] = ids[source, size:], attention[source, size:].bool()
    head, last = ids[first, : size - 1], ids[first, size - 1]
    # Each completion predicts its first token from a copy of the prompt's last.
    leaf = torch.cat([last[:, None, None].expand(n, most, 1), text[:, :, :-1]], 2)
    packed = torch.cat([head, leaf.reshape(n, most * keep)], 1)
    labels = torch.cat([torch.full_like(head, -100), text.masked_fill(~real, -100).reshape(n, most * keep)], 1)
    trunk = prompt_positions[:, first]
    steps = trunk[:, :, -1:, None] + torch.arange(keep, device=device)
    positions = torch.cat([trunk[:, :, :-1], steps.expand(3, n, most, keep).reshape(3, n, most * keep)], 2)

    branch = torch.cat(
        [
            torch.zeros(size - 1, dtype=torch.long, device=device),
            torch.arange(1, most + 1, device=device).repeat_interleave(keep),
        ]
    )
    order = torch.arange(packed.shape[1], device=device)
    sees = ((branch[:, None] == branch) | (branch == 0)) & (order[:, None] >= order)
    seen = torch.cat([attention[first, : size - 1].bool(), torch.ones_like(leaf.reshape(n, -1), dtype=torch.bool)], 1)
    # Padding sees itself, or its softmax would run over nothing.
    mask = (sees & seen[:, None, :]) | torch.eye(len(order), dtype=torch.bool, device=device)
    slots = torch.empty_like(prompt), torch.empty_like(place)
    slots[0][source], slots[1][source] = prompt, place
    return Layout(packed, labels, mask[:, None], positions, first, slots)


class SharedPromptGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with shared prompts in every log-probability pass."""

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy", "compute_aux_loss")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if not _shareable(given):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        ids, attention, keep = given["input_ids"], given["attention_mask"], given["logits_to_keep"]
        pixels, grids, size = given["pixel_values"], given["image_grid_thw"], ids.shape[1] - given["logits_to_keep"]
        core = self.accelerator.unwrap_model(model)
        core = core.get_base_model() if hasattr(core, "get_base_model") else core
        positions, _ = core.model.get_rope_index(
            ids[:, :size],
            given["mm_token_type_ids"][:, :size],
            image_grid_thw=grids,
            attention_mask=attention[:, :size],
        )
        layout = pack(ids, attention, positions, keep, content_keys(pixels, grids))
        images = torch.split(pixels, grids.prod(-1).tolist())
        with self.accelerator.autocast():
            output = model(
                input_ids=layout.ids,
                attention_mask=layout.mask,
                position_ids=layout.positions,
                pixel_values=torch.cat([images[i] for i in layout.first]),
                image_grid_thw=grids[layout.first],
                shift_labels=layout.labels,
                fused_lm_head=True,
            )

        def rows(values: torch.Tensor) -> torch.Tensor:
            leaves = values[:, size - 1 :].reshape(len(layout.first), -1, keep)
            return leaves[layout.slots]

        entropies = rows(output.entropy) if given.get("compute_entropy") else None
        return rows(output.log_probs), entropies, None


def _shareable(given: dict[str, Any]) -> bool:
    """One image a prompt, and nothing asked for that the packed pass does not give."""
    counts = given.get("num_images")
    return (
        given.get("pixel_values") is not None
        and given.get("image_grid_thw") is not None
        and given.get("mm_token_type_ids") is not None
        and counts is not None
        and all(count == 1 for count in counts)
        and not given.get("compute_aux_loss")
    )
