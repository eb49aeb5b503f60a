"""Recording the groups of every k-th step of RFT, whoever samples them: rewards and advantages as TRL computed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery_r1.rewards import Truth
from surgery_r1.rewards.bindings import completion_text
from surgery_r1.train import ranks
from surgery_r1.train.rollouts.files import write_rollouts
from surgery_r1.train.rollouts.record import group_record


class RolloutRecorder:
    """Writes groups to the run folder: steps 1, 1 + every, 1 + 2 every, ...

    Args:
        run: its folder.
        every: steps from one that is recorded to the next; 0 records none.
        size: completions of a group.
        cycle: steps that use the rollouts of one generation. They count as those of the first.
    """

    def __init__(self, run: Path, every: int, size: int, cycle: int = 1) -> None:
        self._run, self._every, self._size, self._cycle = run, every, size, cycle
        self._step, self._groups = 0, list[dict[str, Any]]()

    def wants(self, step: int) -> bool:
        """Whether the rollouts that are generated for this step (from 1) and those of its cycle are recorded."""
        return self._every > 0 and -(step - 1) % self._every < self._cycle

    def take(
        self, step: int, inputs: Sequence[Mapping[str, Any]], logs: Mapping[str, Any], weights: Mapping[str, float]
    ) -> None:
        """Record what was just generated; a call of all ranks.

        Args:
            step: the optimiser step that it is for.
            inputs: this rank's rows of the dataset, one a completion, with ``truth`` and ``shown``; the completions of
                a prompt stand together.
            logs: TRL's own of the last generation: ``completion``, ``advantages`` and ``rewards`` of all ranks.
            weights: name of a reward -> weight.
        """
        if not self.wants(step):
            return
        with ranks.told_once():
            mine = self._groups_of(step, inputs, logs, weights)
        groups = ranks.gathered(mine)
        # A step may be generated in several parts.
        self._groups = [*self._groups, *groups] if step == self._step else groups
        self._step = step
        ranks.first(lambda: write_rollouts(self._run, step, self._groups))

    def _groups_of(
        self, step: int, inputs: Sequence[Mapping[str, Any]], logs: Mapping[str, Any], weights: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        first, count = ranks.index() * len(inputs), len(inputs)
        whole = count * ranks.count()

        def own(values: Sequence[Any]) -> list[Any]:
            return list(values)[-whole:][first : first + count]

        texts = [completion_text(completion) for completion in own(logs["completion"])]
        rewards = {name: own(logs["rewards"][name]) for name in weights}
        advantages = own(logs["advantages"])
        groups = []
        for start in range(0, count, self._size):
            row, part = inputs[start], slice(start, start + self._size)
            of_group = {name: values[part] for name, values in rewards.items()}
            truth = Truth.from_json(row["truth"])
            groups.append(group_record(step, row["shown"], truth, texts[part], of_group, advantages[part], weights))
        return groups
