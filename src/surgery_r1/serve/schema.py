"""The shapes of requests and responses, as OpenAPI lists them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Box = list[float]


class AnswerRequest(BaseModel):
    """A frame and what is asked about it. As multipart: ``image`` is a file, ``question`` comes once for each."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    image: str | None = Field(None, description="PNG, JPEG, WebP or BMP as base64, with or without a data URL")
    sample: str | None = Field(None, description="instead of image: the id of a drawn scene of /v1/samples")
    question: str | None = Field(None, description="one question; or give questions")
    questions: list[str] | None = None
    model: str | None = Field(None, description="a model of /v1/models; the first by default")
    rationale: bool | None = Field(None, description="with a rationale; by default what the model was trained to give")
    samples: int = Field(0, ge=0, description="sampled replies to each question, beside the greedy one")
    cover: list[_Box] = Field([], description="boxes in source pixels to paint over before asking")


class Question(BaseModel):
    """A question; kind and subject are null where it has none of the forms of EndoVis-VQLA."""

    question: str
    kind: str | None
    subject: str | None


class Span(BaseModel):
    """Something that a rationale names: characters ``start`` to ``end``, and where to point in the frame."""

    start: int
    end: int
    kind: Literal["tool", "organ", "state", "place", "half"]
    name: str
    box_px: _Box | None


class Agreement(BaseModel):
    """Whether the parts of a reply agree with each other. Null: nothing to compare. Says nothing of what is right."""

    conclusion: str | None = Field(description="the answer that the rationale ends at")
    box_place: str | None = Field(description="the quadrant that the box lies in")
    rationale_answer: bool | None = Field(description="the rationale ends at the answer given")
    answer_box: bool | None = Field(description="location questions: the answer is the quadrant of the box")
    rationale_box: bool | None = Field(description="location questions: the rationale ends at the quadrant of the box")
    names_subject: bool | None = Field(description="the rationale names what was asked about")
    disagree: list[str] = Field(description="the flags that are false")


class CountedAnswer(BaseModel):
    """How often an answer was sampled."""

    answer: str | None
    count: int


class Sampled(BaseModel):
    """Sampled replies against the greedy one."""

    n: int
    answers: list[CountedAnswer]
    agree: float | None = Field(description="share with the greedy answer")
    boxes_px: list[_Box | None]
    box_iou: float | None = Field(description="mean IoU with the greedy box")


class Answer(Question):
    """A reply to one question."""

    known_form: bool = Field(description="whether the question has a form of EndoVis-VQLA")
    answer: str | None
    box_px: _Box | None = Field(description="x1, y1, x2, y2 from 0 in source pixels, EXIF orientation applied")
    box_norm: _Box | None = Field(description="the same as shares of width and height")
    rationale: str | None
    spans: list[Span]
    confidence: float | None = Field(
        description="the model's probability of exactly this answer after its own rationale (a product over its "
        "tokens); not calibrated"
    )
    sampled: Sampled | None
    agreement: Agreement
    problems: list[str] = Field(description="what is wrong with the reply's form; empty for a sound one")
    text: str = Field(description="the raw reply")


class Size(BaseModel):
    """Of the frame, in pixels."""

    width: int
    height: int


class Timing(BaseModel):
    """Milliseconds in the queue and in the model, and how many questions were answered together."""

    waited_ms: float
    model_ms: float
    batch: int


class AnswerResponse(BaseModel):
    """Replies in the order of the questions."""

    model: str
    stage: str
    image: Size
    rationale: bool
    samples: int
    answers: list[Answer]
    timing: Timing
    ms: float


class ServedModel(BaseModel):
    """A model, and which forms of reply it can be asked for."""

    id: str
    stage: str
    rationale: bool
    direct: bool
    engine: str
    weights_sha256: str | None
    box_space: str


class ModelsResponse(BaseModel):
    """The models, and what a request may hold."""

    models: list[ServedModel]
    default: str
    location_rule: str | None
    limits: dict[str, int | float]


class SeenObject(BaseModel):
    """What a drawn scene holds."""

    name: str
    state: str | None
    location: str | None
    box_px: _Box


class Scene(BaseModel):
    """A drawn scene."""

    id: str
    title: str
    width: int
    height: int
    url: str
    questions: list[Question]
    objects: list[SeenObject]


class SamplesResponse(BaseModel):
    """The drawn scenes."""

    samples: list[Scene]


class SuggestResponse(BaseModel):
    """Questions in known forms."""

    questions: list[Question]


class Health(BaseModel):
    """Whether the server takes requests."""

    status: Literal["ok", "stopping"]
    version: str


class ErrorDetail(BaseModel):
    """What was wrong and what to do."""

    code: str
    message: str
    fix: str


class ErrorResponse(BaseModel):
    """The body of every response that is no 200."""

    error: ErrorDetail


#: The request body of ``/v1/answer``, which FastAPI cannot tell from a handler that reads it itself.
ANSWER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": AnswerRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "sample": {"type": "string"},
                        "question": {"type": "array", "items": {"type": "string"}},
                        "model": {"type": "string"},
                        "rationale": {"type": "boolean"},
                        "samples": {"type": "integer", "minimum": 0},
                        "cover": {"type": "string", "description": "JSON: [[x1, y1, x2, y2], ...]"},
                    },
                    "required": ["question"],
                }
            },
        },
    }
}
