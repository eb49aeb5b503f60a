"""From the body of ``/v1/answer`` to a job: read within its limits, checked, its frame decoded."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from surgery_r1.serve.engines import Engine
from surgery_r1.serve.frames import covered, from_base64, read_frame
from surgery_r1.serve.limits import Limits
from surgery_r1.serve.questions import checked_question
from surgery_r1.serve.refusal import Refusal
from surgery_r1.serve.scenes import SampleScene
from surgery_r1.serve.schema import AnswerRequest
from surgery_r1.serve.worker import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Upload:
    """A request as it came: its fields, and the image's bytes where they came as a file."""

    fields: AnswerRequest
    data: bytes | None


class _InMemory(MultiPartParser):
    """Starlette's parser, which would put larger files on disk: nothing that is asked is written anywhere."""

    spool_max_size = 2**40


async def read_upload(request: Request, limits: Limits) -> Upload:
    """The fields of a request.

    Raises:
        Refusal: 400 for a body that cannot be read, 408 for one that does not come, 415 for another kind of body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        fix = "send application/json or multipart/form-data"
        raise Refusal(415, "media_type", f"a body of type {kind[:80]!r}", fix)
    read = _json_upload(request) if kind == "application/json" else _form_upload(request, limits)
    try:
        return await asyncio.wait_for(read, limits.body_seconds)
    except TimeoutError:
        what = f"the body took longer than {limits.body_seconds:g} s"
        raise Refusal(408, "timeout", what, "send it faster", {"Connection": "close"}) from None


async def _json_upload(request: Request) -> Upload:
    try:
        data = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refusal(400, "bad_request", "the body is no JSON", "send a JSON object") from None
    return Upload(_fields(data), None)


async def _form_upload(request: Request, limits: Limits) -> Upload:
    parser = _InMemory(
        request.headers, request.stream(), max_files=1, max_fields=limits.questions + 8, max_part_size=64 * 1024
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        what = error.message if isinstance(error, MultiPartException) else "the form cannot be read"
        raise Refusal(400, "bad_request", what, "send one image and the fields of the API as a form") from None
    fields: dict[str, Any] = {}
    data: bytes | None = None
    questions: list[str] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "image":
                    raise _wrong(f"{name[:40]!r} is a file; only image is")
                # Its file name is of no interest.
                data = await value.read()
            elif name == "question":
                questions.append(value)
            elif name in fields:
                raise _wrong(f"{name[:40]!r} comes twice")
            else:
                fields[name] = _parsed(name, value)
    finally:
        await form.close()
    if questions:
        if "questions" in fields:
            raise _wrong("questions beside question")
        fields["questions"] = questions
    return Upload(_fields(fields), data)


def _parsed(name: str, value: str) -> Any:
    """A form's text as the type that its field has."""
    if name in ("rationale", "samples", "cover"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise _wrong(f"{name} cannot be read: {value[:40]!r}") from None
    return value


def _fields(data: Any) -> AnswerRequest:
    if not isinstance(data, dict):
        raise _wrong("the body is no JSON object")
    try:
        return AnswerRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"][:3])
        raise _wrong(f"{place}: {first['msg']}") from None


def _wrong(message: str) -> Refusal:
    return Refusal(400, "bad_request", message, "see /openapi.json")


class JobMaker:
    """Makes jobs of requests.

    Args:
        engines: the models by name; the first is asked by default.
        scenes: the drawn scenes by id.
    """

    def __init__(self, engines: Mapping[str, Engine], scenes: Mapping[str, SampleScene], limits: Limits) -> None:
        self._engines, self._scenes, self._limits = engines, scenes, limits
        # Decoding takes memory: a few at a time.
        self._decoding = asyncio.Semaphore(2)

    async def make(self, upload: Upload) -> Job:
        """The job that a request asks for.

        Raises:
            Refusal: 413 or 422, with what is wrong.
        """
        fields, limits = upload.fields, self._limits
        engine = self._engine(fields.model)
        facts = engine.facts
        reasoning = facts.rationale if fields.rationale is None else fields.rationale
        if not (facts.rationale if reasoning else facts.direct):
            what = f"{facts.id} was not trained to reply {'with' if reasoning else 'without'} a rationale"
            raise Refusal(422, "rationale", what, f"send rationale = {str(not reasoning).lower()}")
        questions = self._questions(fields, engine)
        if fields.samples > limits.samples:
            raise _beyond(f"samples = {fields.samples}", f"at most {limits.samples}")
        if len(questions) * (1 + fields.samples) > limits.replies:
            what = f"{len(questions)} questions with {fields.samples} samples each"
            raise _beyond(what, f"at most {limits.replies} replies in all")
        if len(fields.cover) > limits.covers:
            raise _beyond(f"{len(fields.cover)} boxes in cover", f"at most {limits.covers}")
        async with self._decoding:
            frame, key = await asyncio.to_thread(self._frame, upload)
        return Job(facts.id, frame, key, questions, reasoning, fields.samples)

    def _engine(self, name: str | None) -> Engine:
        if name is None:
            return next(iter(self._engines.values()))
        if name not in self._engines:
            raise Refusal(422, "model", f"no model {name[:80]!r}", f"ask one of {', '.join(self._engines)}")
        return self._engines[name]

    def _questions(self, fields: AnswerRequest, engine: Engine) -> list[str]:
        if (fields.question is None) == (fields.questions is None):
            raise Refusal(422, "question", "neither or both of question and questions", "give one of them")
        asked = [fields.question] if fields.question is not None else fields.questions or []
        if not 1 <= len(asked) <= self._limits.questions:
            raise _beyond(f"{len(asked)} questions", f"1 to {self._limits.questions}")
        return [checked_question(text, self._limits.question_chars, engine.reserved) for text in asked]

    def _frame(self, upload: Upload) -> tuple[Image, bytes]:
        """The frame to show, and a key that equal frames share."""
        fields = upload.fields
        given = [fields.image is not None, fields.sample is not None, upload.data is not None]
        if sum(given) != 1:
            raise Refusal(422, "image_missing", "no image, or several", "give one of image and sample")
        if fields.sample is not None:
            scene = self._scenes.get(fields.sample)
            if scene is None:
                fix = f"name one of {', '.join(self._scenes)}"
                raise Refusal(422, "sample", f"no drawn scene {fields.sample[:80]!r}", fix)
            data, image = scene.png, scene.image
        else:
            data = from_base64(fields.image) if fields.image is not None else upload.data or b""
            image = read_frame(data, self._limits.pixels)
        key = hashlib.blake2b(data + repr(fields.cover).encode(), digest_size=16).digest()
        return covered(image, fields.cover), key


def _beyond(what: str, limit: str) -> Refusal:
    return Refusal(422, "value", what, f"ask for {limit}")
