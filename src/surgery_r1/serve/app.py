"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from surgery_r1 import __version__
from surgery_r1.geometry import LOCATION_RULES, LocationRule, scale
from surgery_r1.inference import Reply
from surgery_r1.serve import judging, schema
from surgery_r1.serve.engines import Engine
from surgery_r1.serve.guard import Guard
from surgery_r1.serve.limits import Limits
from surgery_r1.serve.page_files import PageFile
from surgery_r1.serve.questions import described, suggestions
from surgery_r1.serve.refusal import Refusal, busy, stopping, unexpected
from surgery_r1.serve.request import JobMaker, read_upload
from surgery_r1.serve.scenes import SampleScene
from surgery_r1.serve.worker import Answered, Job, Worker

_CODES = {404: "not_found", 405: "method"}
_SILENT: dict[str, Any] = {
    "telemetry": dict.fromkeys(("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False)
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse} for status in (400, 401, 403, 408, 413, 415, 421, 422, 500, 502, 503, 504)
}


@dataclass(frozen=True)
class Service:
    """What a server serves.

    Attributes:
        engines: the models by name; the first is asked by default.
        location_rule: how places follow from boxes in the labels that they were trained on.
        token: that requests must bring; empty for none.
        hosts: names under which the server may be asked, see :class:`surgery_r1.serve.guard.Guard`.
    """

    engines: Mapping[str, Engine]
    scenes: Mapping[str, SampleScene]
    page: Mapping[str, PageFile]
    location_rule: LocationRule | None = LOCATION_RULES[0]
    limits: Limits = field(default_factory=Limits)
    token: str = ""
    hosts: tuple[str, ...] = ()


def make_app(service: Service) -> tuple[Any, Worker]:
    """The application (ASGI), and the worker that answers for it."""
    worker = Worker(service.engines, service.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.join, service.limits.seconds)

    app = FastAPI(
        title="Surgery-R1",
        version=__version__,
        description="Questions about surgical frames. Research use only, not a medical device.",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # FastAPI can send bodies and errors to a collector that the environment names.
        **_SILENT,
    )
    _add_listings(app, service, worker)
    _add_answer(app, service, worker)
    _add_page(app, service)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _surprise)
    guard = Guard(app, body_bytes=service.limits.body_bytes, token=service.token, hosts=service.hosts)
    return guard, worker


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status, error.headers)


async def _surprise(_: Request, error: Exception) -> Response:
    return await _refused(_, unexpected(error))


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "bad_request")
    refusal = Refusal(error.status_code, code, str(error.detail), "see /openapi.json", error.headers)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _add_listings(app: FastAPI, service: Service, worker: Worker) -> None:
    @app.get("/healthz", response_model=schema.Health, responses={503: {"model": schema.Health}})
    async def health() -> Response:
        body = {"status": "stopping" if worker.stopping else "ok", "version": __version__}
        return JSONResponse(body, 503 if worker.stopping else 200)

    @app.get("/v1/models", response_model=schema.ModelsResponse)
    async def models() -> Any:
        listed = [asdict(engine.facts) for engine in service.engines.values()]
        rule = service.location_rule
        return {
            "models": listed,
            "default": listed[0]["id"],
            "location_rule": rule.name if rule else None,
            "limits": service.limits.shown(),
        }

    @app.get("/v1/samples", response_model=schema.SamplesResponse)
    async def samples() -> Any:
        return {"samples": [scene.shown() for scene in service.scenes.values()]}

    @app.get("/v1/suggest", response_model=schema.SuggestResponse)
    async def suggest() -> Any:
        return {"questions": suggestions()}


def _add_page(app: FastAPI, service: Service) -> None:
    """Files by fixed names: no path of a request leads to the disk."""

    def found(name: str) -> Response:
        file = service.page.get(name)
        if file is None:
            raise HTTPException(404, "no such page")
        return Response(file.data, media_type=file.media_type)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return found("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        return found(name)

    @app.get("/samples/{name}.png", responses={200: {"content": {"image/png": {}}}}, response_class=Response)
    async def picture(name: str) -> Response:
        scene = service.scenes.get(name)
        if scene is None:
            raise HTTPException(404, "no such scene")
        return Response(scene.png, media_type="image/png")


def _add_answer(app: FastAPI, service: Service, worker: Worker) -> None:
    limits = service.limits
    maker = JobMaker(service.engines, service.scenes, limits)
    reading = asyncio.Semaphore(limits.reading)
    taken = 0

    @app.post("/v1/answer", response_model=schema.AnswerResponse, responses=_ERRORS, openapi_extra=schema.ANSWER_BODY)
    async def answer(request: Request) -> Any:
        nonlocal taken
        if worker.stopping:
            raise stopping()
        if taken >= limits.waiting:
            raise busy(f"{taken} requests are waiting")
        started = time.monotonic()
        taken += 1
        try:
            async with asyncio.timeout(limits.seconds):
                async with reading:
                    upload = await read_upload(request, limits)
                    job = await maker.make(upload)
                    del upload
                worker.submit(job)
                done = await _watched(request, job)
        except TimeoutError:
            what = f"no reply within {limits.seconds:g} s"
            raise Refusal(504, "timeout", what, "ask again, or with fewer questions") from None
        finally:
            taken -= 1
        return _response(service, job, done, time.monotonic() - started)


async def _watched(request: Request, job: Job) -> Answered:
    """Wait for a job; it is given up when nobody waits for it any more."""
    waiting = asyncio.wrap_future(job.done)
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Refusal(499, "gone", "the client has gone", "stay")
        return waiting.result()
    finally:
        job.abandoned = not waiting.done()
        gone.cancel()


def _response(service: Service, job: Job, done: Answered, seconds: float) -> dict[str, Any]:
    rule = service.location_rule
    return {
        "model": job.model,
        "stage": service.engines[job.model].facts.stage,
        "image": {"width": job.frame.width, "height": job.frame.height},
        "rationale": job.reasoning,
        "samples": job.samples,
        "answers": [_answer(reply, samples, rule) for reply, samples in zip(done.replies, done.samples, strict=True)],
        "timing": {
            "waited_ms": _ms(done.waited),
            "model_ms": _ms(done.in_model),
            "batch": done.batch,
        },
        "ms": _ms(seconds),
    }


def _answer(reply: Reply, samples: list[Reply], rule: LocationRule | None) -> dict[str, Any]:
    asked = described(reply.question)
    box, frame = reply.box_px, reply.frame
    assert frame is not None
    return {
        **asked,
        "known_form": asked["kind"] is not None,
        "answer": reply.answer,
        "box_px": None if box is None else list(box),
        "box_norm": None if box is None else list(scale(box, 1 / frame.width, 1 / frame.height)),
        "rationale": reply.rationale,
        "spans": judging.spans(reply, rule),
        "confidence": reply.confidence,
        "sampled": judging.sampled(reply, samples),
        "agreement": judging.agreement(reply, rule),
        "problems": list(reply.problems),
        "text": reply.text,
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
