"""The recipe of a dataset: which rows a question becomes, in how many paraphrases, and who writes the reasoning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt

from surgery_r1._util import toml
from surgery_r1._util.checked import Count, NotNegative, Positive
from surgery_r1._util.toml_sources import read_sources
from surgery_r1.data.paraphrases import OWN_KINDS, PARAPHRASES
from surgery_r1.records import TASKS

#: The writer that fills in templates from the annotations, and the one that asks a language model.
TEMPLATE, TEACHER = "template", "teacher"

#: Different rationales that the template writer has for a question.
TEMPLATE_RATIONALES = 2


@dataclass(frozen=True)
class RowsConfig:
    """``[rows]``: rows of each kind that a question becomes; 0 leaves the kind out.

    Attributes:
        visual_qa, grounding_qa: each in a paraphrase of its own; the first is the question as the labels have it.
        cot: each with a reasoning of its own.
    """

    visual_qa: Count = 1
    grounding_qa: Count = 1
    cot: Count = 1


@dataclass(frozen=True)
class ReasoningConfig:
    """``[reasoning]``: who writes it, and what it must keep to.

    Attributes:
        writers: ``template`` or ``teacher``; the n-th reasoning of a question is the n-th writer's, in turn.
        attempts: how often a writer may try before a reasoning that fails its checks is dropped.
        min_words, max_words: its length.
    """

    writers: tuple[str, ...] = (TEMPLATE,)
    attempts: Positive = 3
    min_words: int = 4
    max_words: int = 120


@dataclass(frozen=True)
class TeacherConfig:
    """``[teacher]``: a multimodal model behind an OpenAI-compatible endpoint.

    Attributes:
        endpoint: such as ``http://127.0.0.1:8000/v1``. One on another machine needs ``--allow-remote-frames``.
        model: its name there.
        send_frames: show it the frame, not only what is annotated.
        concurrency: requests at a time.
        requests_per_minute: 0 for no limit.
        timeout: seconds that a reply may take.
        retries: how often a request that failed is sent again, with growing pauses.
        max_tokens, temperature: of a reply.
        seeds: send a seed with each request, so that a server that draws from it answers the same again. vLLM on a CPU
            ends at one, unless it is started with ``--no-enable-chunked-prefill``.
    """

    endpoint: str = ""
    model: str = ""
    send_frames: bool = True
    concurrency: Positive = 8
    requests_per_minute: Count = 0
    timeout: Annotated[float, Gt(0), "seconds above 0"] = 120.0
    retries: Count = 6
    max_tokens: Positive = 400
    temperature: NotNegative = 0.7
    seeds: bool = True


@dataclass(frozen=True)
class Recipe:
    """A whole recipe file. ``title`` stands in the card."""

    title: str = "Surgical VQLA with reasoning"
    seed: int = 0
    rows: RowsConfig = field(default_factory=RowsConfig)
    reasoning: ReasoningConfig = field(default_factory=ReasoningConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    @property
    def rows_per_question(self) -> int:
        """Rows that a training question becomes when no reasoning is dropped."""
        return sum(getattr(self.rows, task) for task in TASKS)

    @property
    def turns(self) -> tuple[str, ...]:
        """Who writes each of the rationales of a question."""
        writers = self.reasoning.writers
        return tuple(writers[i % len(writers)] for i in range(self.rows.cot))

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher writes any of the reasoning."""
        return TEACHER in self.turns

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps."""
        data = asdict(self)
        data["reasoning"]["writers"] = list(self.reasoning.writers)
        if not self.asks_teacher:
            del data["teacher"]
        return data


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return toml.shipped_with("rows")


def load_recipe(name: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by its name (``surgery_r1_54k``) or a TOML file by its path; None is one row of each kind.

    A file may say ``extends = "surgery_r1_54k"`` at its top: another recipe, or a path from where it lies. It then
    needs only what differs: tables merge key by key, lists are replaced.

    Args:
        overrides: ``key=value`` each, on top of the file, as ``--set`` gives them.

    Raises:
        SurgeryR1Error: no such file, bad TOML, or every unknown key and wrong value at once.

    >>> load_recipe("surgery_r1_54k", overrides=("rows.cot=1",)).rows
    RowsConfig(visual_qa=2, grounding_qa=2, cot=1)
    """
    return toml.build_from(Recipe, read_sources(Recipe, name, shipped_recipes(), overrides), _wrong)


def _wrong(recipe: Recipe) -> Iterator[str]:
    rows, reasoning, teacher = recipe.rows, recipe.reasoning, recipe.teacher
    for task in ("visual_qa", "grounding_qa"):
        most = min(len(forms) for forms in (*PARAPHRASES[task].values(), OWN_KINDS[task]))
        if getattr(rows, task) > most:
            yield f"rows.{task} = {getattr(rows, task)}, but there are {most} paraphrases"
    if recipe.rows_per_question == 0:
        yield "rows: a question becomes no row"
    if not reasoning.writers or set(reasoning.writers) - {TEMPLATE, TEACHER}:
        yield f"reasoning.writers = {list(reasoning.writers)}, expected some of {[TEMPLATE, TEACHER]}"
    elif recipe.turns.count(TEMPLATE) > TEMPLATE_RATIONALES:
        yield f"rows.cot = {rows.cot}, but the template writer has {TEMPLATE_RATIONALES} rationales for a question"
    if not 1 <= reasoning.min_words <= reasoning.max_words:
        yield f"reasoning.min_words = {reasoning.min_words} to max_words = {reasoning.max_words} leaves no length"
    if reasoning.writers and recipe.asks_teacher and not (teacher.endpoint and teacher.model):
        yield "reasoning.writers names a teacher: give teacher.endpoint and teacher.model"
