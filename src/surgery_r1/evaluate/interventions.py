"""Another rationale is put in a model's mouth: does its answer follow, and does its box?

A rationale that can be exchanged without any effect explains nothing. After Lanham et al. 2023, "Measuring faithfulness
in chain-of-thought reasoning" (arXiv 2307.13702), for a reply of three parts; which rationales are exchanged and what
is counted is ours.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1 import codec
from surgery_r1._util.locks import held
from surgery_r1._util.progress import Progress
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.agreement import AgreementReader, answer_fits_box
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.intervals import block_ids, share
from surgery_r1.evaluate.kept_replies import ask_what_is_missing
from surgery_r1.evaluate.predict import evenly_spaced, prompt_of
from surgery_r1.evaluate.score_record import ScoreRecord
from surgery_r1.geometry import iou
from surgery_r1.matching import IOU_RIGHT
from surgery_r1.models.load import from_pretrained
from surgery_r1.models.load import weights_sha256 as hash_of_weights
from surgery_r1.models.processor import view_of
from surgery_r1.models.sharing.vision_features import keep_frozen_features

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset

#: What is put in the model's mouth: its own rationale (nothing should change), one that it gave to another question of
#: the kind and that ends at another answer, its own with that answer exchanged, or none at all.
INTERVENTIONS = ("own", "swapped", "changed", "off")


@dataclass(frozen=True, slots=True)
class Imposed:
    """A rationale for a question: ``line`` is what the model said by itself; both None where none is asked for."""

    line: ScoreRecord
    rationale: str | None
    conclusion: str | None


def intervene(
    model: str | Path,
    dataset: Dataset,
    lines: Sequence[ScoreRecord],
    options: GenerationOptions,
    folder: Path,
    *,
    weights_sha256: str | None,
    predictions_sha256: str,
    limit: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every intervention of :data:`INTERVENTIONS` on a model's own replies: name -> :meth:`Interventions.counted`.

    ``off`` is left out for a model that was not trained to reply without a rationale.

    Args:
        model: a run, a model folder or ``tiny``; the one that has written ``lines``.
        folder: where what followed is kept until all is asked; a call after a kill goes on from it.
        weights_sha256: of the weights that have written them, as their prediction file says; None where it does not.
        predictions_sha256: of that file.
        limit: take only that many questions, evenly spread (0: all).

    Raises:
        SurgeryR1Error: when the model has other weights than the one that has written the lines, or the folder was
            begun with another model, other predictions or other settings.
    """
    bundle = from_pretrained(model)
    mine = _same_weights(model, bundle.folder, weights_sha256)
    keep_frozen_features(bundle.model)
    engine = TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, options)
    made = Interventions(dataset, evenly_spaced(lines, limit), seed)
    todo = {name: made.imposed(name) for name in INTERVENTIONS if name != "off" or bundle.info.direct_answers}
    total, before, found = sum(map(len, todo.values())), 0, {}
    stamp: dict[str, Any] = {"weights_sha256": mine, "predictions_sha256": predictions_sha256}
    stamp |= {"limit": limit, "seed": seed, "max_new_tokens": options.max_new_tokens}

    def report(done: int, _: int) -> None:
        if progress is not None:
            progress(before + done, total)

    with held(folder, "exchanging rationales"):
        for name, imposed in todo.items():
            followed = ask_what_is_missing(
                imposed,
                lambda part: made.followed(engine, part),
                folder / f"{name}.jsonl.partial",
                stamp=stamp,
                batch_size=options.batch_size,
                whole=folder,
                progress=report,
            )
            found[name] = made.counted(imposed, [followed[one.line.id] for one in imposed])
            before += len(imposed)
        shutil.rmtree(folder)
    return found


def _same_weights(model: str | Path, folder: Path, written_by: str | None) -> str:
    """The hash of a model's weights, which must be those that have written a prediction file."""
    mine = hash_of_weights(folder)
    if written_by not in (None, mine):
        raise SurgeryR1Error(
            f"has weights {mine[:12]}, but the predictions were made with {str(written_by)[:12]}",
            where=str(model),
            fix="name the model that has written the predictions, or predict again",
        )
    return mine


def shares_of(pairs: Sequence[tuple[ScoreRecord, Mapping[str, bool]]]) -> dict[str, Any]:
    """``n``, and by flag ``{"value", "ci95", "n"}``: of how many of the questions that have it, it is true."""
    of_flag: dict[str, list[tuple[ScoreRecord, bool]]] = {}
    for line, flags in pairs:
        for name, flag in flags.items():
            of_flag.setdefault(name, []).append((line, flag))
    found: dict[str, Any] = {"n": len(pairs)}
    for name, told in of_flag.items():
        estimate = share([flag for _, flag in told], block_ids([line for line, _ in told]))
        found[name] = {"value": estimate.value, "ci95": [estimate.low, estimate.high], "n": len(told)}
    return found


class Interventions:
    """Puts rationales into the mouth of a model that has answered a dataset's questions.

    Args:
        lines: its own replies, scored; those without a rationale that concludes something are left out.
        seed: of which rationales are exchanged.
    """

    def __init__(self, dataset: Dataset, lines: Sequence[ScoreRecord], seed: int = 0) -> None:
        self._dataset = dataset
        self._reader = AgreementReader(dataset)
        self._lines = [line for line in lines if line.reasoning and line.conclusion and not line.failed]
        self._alike: dict[tuple[str, str], list[ScoreRecord]] = {}
        for line in self._lines:
            self._alike.setdefault((line.kind, line.source), []).append(line)
        self._seed = seed

    def imposed(self, name: str) -> list[Imposed]:
        """What an intervention of :data:`INTERVENTIONS` says for each question for which it can be made."""
        made = []
        for line in self._lines:
            if name == "own":
                made.append(Imposed(line, line.reasoning, line.conclusion))
            elif name == "off":
                made.append(Imposed(line, None, None))
            else:
                other = self._swapped(line) if name == "swapped" else self._changed(line)
                made += [other] if other is not None else []
        return made

    def _rng(self, line: ScoreRecord) -> random.Random:
        return random.Random(f"{self._seed}:{line.id}")

    def _swapped(self, line: ScoreRecord) -> Imposed | None:
        """A rationale of another frame that ends at another answer, or None where the model gave none."""
        alike = self._alike[line.kind, line.source]
        start = self._rng(line).randrange(len(alike))
        for other in (*alike[start:], *alike[:start]):
            if other.frame_id != line.frame_id and other.conclusion != line.conclusion:
                return Imposed(line, other.reasoning, other.conclusion)
        return None

    def _changed(self, line: ScoreRecord) -> Imposed | None:
        """The own rationale with the last mention of what it ends at exchanged for another class of the kind."""
        assert line.reasoning is not None and line.conclusion is not None
        classes = self._dataset.answers[line.source][line.kind]
        others = [name for name in classes if name != line.conclusion]
        form = re.compile(r"[\s_-]".join(map(re.escape, re.split(r"[\s_-]", line.conclusion))), re.I)
        mentions = list(form.finditer(line.reasoning))
        if not others or not mentions:
            return None
        last, other = mentions[-1], self._rng(line).choice(others)
        rationale = line.reasoning[: last.start()] + other + line.reasoning[last.end() :]
        sample = self._dataset.samples[line.id]
        claims = self._reader.claims(rationale, sample, self._dataset.frame_of(sample))
        # Where it does not end at the other answer, as when that is a part of a longer name, nothing was exchanged.
        return Imposed(line, rationale, other) if claims.conclusion == other else None

    def ask(self, engine: TransformersEngine, imposed: Sequence[Imposed]) -> list[codec.Prediction]:
        """What the model says after each rationale, boxes in source pixels."""
        prompts = []
        for one in imposed:
            prompt = prompt_of(self._dataset.samples[one.line.id], self._dataset, reasoning=one.rationale is not None)
            prompts.append(prompt if one.rationale is None else replace(prompt, reply_start=codec.begin(one.rationale)))
        texts = [text for batch in engine.generate(prompts) for text in batch]
        encoder = engine.encoder
        return [
            codec.read_reply(prompt.reply_start + text, encoder.box_space, view_of(encoder.processor, *size))
            for prompt, text, size in zip(
                prompts, texts, [(one.line.width, one.line.height) for one in imposed], strict=True
            )
        ]

    def followed(self, engine: TransformersEngine, imposed: Sequence[Imposed]) -> list[Mapping[str, bool]]:
        """The :meth:`flags` of what the model says after each rationale."""
        return [self.flags(one, reading) for one, reading in zip(imposed, self.ask(engine, imposed), strict=True)]

    def counted(self, imposed: Sequence[Imposed], flags: Sequence[Mapping[str, bool]]) -> dict[str, Any]:
        """What followed: shares with 95 % intervals, of all and by question kind.

        Args:
            flags: of each, see :meth:`flags`.

        Returns:
            ``n`` (questions; ``left_out``: for which the intervention could not be made), and of them
            ``answer_follows`` (the answer is where the rationale put in the mouth ends), ``answer_kept`` (it is what
            the model said by itself), ``answer_right``, ``box_kept`` (an IoU of at least .5 with the model's own box),
            ``box_follows`` (the box fits where the rationale ends, see
            :func:`surgery_r1.evaluate.agreement.answer_fits_box`; of those where that can be told). Each is
            ``{"value", "ci95", "n"}``, its value in [0, 1]; what cannot be told is absent.
        """
        pairs = [(one.line, told) for one, told in zip(imposed, flags, strict=True)]
        kinds = dict.fromkeys(line.kind for line, _ in pairs)
        return {
            **shares_of(pairs),
            "left_out": len(self._lines) - len(imposed),
            "by_kind": {kind: shares_of([pair for pair in pairs if pair[0].kind == kind]) for kind in kinds},
        }

    def flags(self, one: Imposed, reading: codec.Prediction) -> Mapping[str, bool]:
        """What followed from one rationale, see :meth:`counted`; what cannot be told is absent."""
        line, sample = one.line, self._dataset.samples[one.line.id]
        flags = {
            "answer_kept": reading.answer == line.answer,
            "answer_right": reading.answer in {answer for answer, _ in sample.accepted},
        }
        if line.box_px is not None:
            flags["box_kept"] = reading.box_px is not None and iou(reading.box_px, line.box_px) >= IOU_RIGHT
        if one.conclusion is not None:
            flags["answer_follows"] = reading.answer == one.conclusion
            concluded = replace(reading, answer=one.conclusion)
            frame = self._dataset.frame_of(sample)
            fits = answer_fits_box(concluded, sample, frame, self._reader.rule(sample))
            if fits is not None:
                flags["box_follows"] = fits
        return flags
