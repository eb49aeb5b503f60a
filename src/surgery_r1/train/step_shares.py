"""What a step trains on, shared out: a config says what all processes together take, and each finds its part here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler
from trl import SFTTrainer

from surgery_r1.errors import SurgeryR1Error
from surgery_r1.models.sharing.prefix_tree import IGNORE
from surgery_r1.train import ranks
from surgery_r1.train.lm_head import labelled_alone


def passes(name: str, total: int, micro: int, unit: str, least: int = 1) -> tuple[int, int]:
    """How a step of ``total`` is divided: the size of a forward and backward pass, and passes of each process.

    Args:
        name: of the value in the config, such as ``sft.batch_size``.
        micro: of a pass, 0 for all that a process has of a step.
        unit: what is counted.
        least: what must stay together.

    Raises:
        SurgeryR1Error: when processes or passes do not divide it.

    >>> passes("sft.batch_size", 8, 2, "rows")
    (2, 4)
    """
    number, table = ranks.count(), name.split(".")[0]
    if total % (number * least):
        fitting = [n for n in range(1, total // least + 1) if total % (n * least) == 0]
        raise SurgeryR1Error(
            f"{name} = {total // least} {unit} a step cannot be divided by {number} processes",
            fix=f"start {' or '.join(map(str, fitting))} processes, or make it a multiple of {number}",
        )
    mine = total // number
    size = micro or mine
    if mine % size:
        fitting = [n for n in range(least, mine + 1, least) if mine % n == 0]
        raise SurgeryR1Error(
            f"{table}.micro_batch = {micro} does not divide the {mine} of a step that each of {number} processes has",
            fix=f"take {' or '.join(map(str, fitting))}, or 0 for all at once",
        )
    return size, mine // size


class StepBatches(Sampler[list[int]]):
    """The passes of one process. A step has the rows that one process alone would take, in the same order.

    The last step of an epoch may have fewer rows than passes ask for: a pass without a row of its own gets a stand-in
    (a negative number), see :class:`StandIns`.

    Args:
        sampler: the rows of an epoch, alike on all ranks.
        rows: of a step, over all processes.
        micro: rows of a pass.
    """

    def __init__(self, sampler: Any, rows: int, micro: int) -> None:
        self.sampler, self.rows, self.micro = sampler, rows, micro

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.rows) * (self.rows // self.micro // ranks.count())

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for row in self.sampler:
            step.append(row)
            if len(step) == self.rows:
                yield from self._mine(step)
                step = []
        if step:
            yield from self._mine(step)

    def _mine(self, step: list[int]) -> Iterator[list[int]]:
        parts = [step[start : start + self.micro] for start in range(0, self.rows, self.micro)]
        for part in parts[ranks.index() :: ranks.count()]:
            yield part or [-1 - step[0]]


class StandIns(torch.utils.data.Dataset[Any]):
    """``rows``, and under the number ``-1 - n`` row ``n`` as a stand-in, from which nothing is to be learned."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        """The rows of a pass."""
        rows = self.rows.__getitems__([number if number >= 0 else -1 - number for number in numbers])
        return [{**row, "stand_in": number < 0} for row, number in zip(rows, numbers, strict=True)]


def without_targets(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """``collate`` for rows of :class:`StandIns`: a stand-in has no target tokens."""

    def collated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = collate([{name: value for name, value in row.items() if name != "stand_in"} for row in rows])
        if rows[0]["stand_in"]:
            for name in {"labels", "shift_labels"} & batch.keys():
                batch[name] = torch.full_like(batch[name], IGNORE)
        return batch

    return collated


class TokenMeanSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer, whose loss is the mean over the target tokens of a step, however the step is divided.

    The Qwen-VL classes say that they take no count of a step's tokens; transformers then averages the means of passes
    and processes, so that a token of a short reply weighs more. TRL computes the loss itself and takes the count.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's own, without the projection of tokens that have no label."""
        with labelled_alone(self.accelerator.unwrap_model(model)):
            return super().compute_loss(model, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """One process has transformers' own; several share out what that one would get."""
        if ranks.count() == 1:
            return super().get_train_dataloader()
        micro = self.args.per_device_train_batch_size
        rows = micro * ranks.count() * self.args.gradient_accumulation_steps
        loader = DataLoader(
            StandIns(self.train_dataset),
            batch_sampler=StepBatches(self._get_train_sampler(self.train_dataset), rows, micro),
            collate_fn=without_targets(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # As for one process, so that nothing is shared out a second time.
        seed = {"use_seedable_sampler": True, "data_seed": self.args.data_seed}
        return prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=False, **seed)
