"""A model behind a chat server, in its own words: held to a schema where the server obeys, one model throughout."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from surgery_r1._util.images import opened_image
from surgery_r1._util.parallel import finished_map
from surgery_r1.chat.client import Client
from surgery_r1.chat.frames import frame_url, image_url
from surgery_r1.chat.reply import WHOLE, ChatReply
from surgery_r1.chat.trouble import Refused
from surgery_r1.codec import View
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.native.questions import NativeOptions, NativeQuestions
from surgery_r1.evaluate.predict import NumberedLine
from surgery_r1.records import Sample

logger = logging.getLogger(__name__)

#: How a reply can be held to a JSON schema: vLLM's own name, then what OpenAI calls it; ``none`` is not at all.
CONSTRAINTS = ("structured_outputs", "response_format", "none")

#: What no model says of its own accord: a server whose model says it obeys.
_WORD = "zq-4711-surgery-r1"
_IMPOSSIBLE = {
    "type": "object",
    "properties": {"probe": {"type": "string", "enum": [_WORD]}},
    "required": ["probe"],
    "additionalProperties": False,
}
_HELLO: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]


def held_to(schema: dict[str, Any], constraint: str) -> dict[str, Any] | None:
    """The part of a request that holds a reply to a schema."""
    if constraint == "structured_outputs":
        return {"structured_outputs": {"json": schema}}
    if constraint == "response_format":
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "schema": schema, "strict": True},
            }
        }
    return None


def find_constraint(client: Client, model: str, *, unconstrained: bool = False) -> tuple[str, str]:
    """The first of :data:`CONSTRAINTS` that a server obeys, and what it calls the model that has answered.

    A schema that only an impossible reply fits is sent first, without a frame.

    Args:
        unconstrained: go on with ``none`` where no other is obeyed.

    Raises:
        SurgeryR1Error: when none is obeyed, or the server cannot be used.
    """
    refused: Refused | None = None
    blanks = False
    for constraint in CONSTRAINTS[:-1]:
        try:
            reply = client.ask(model, _HELLO, extra=held_to(_IMPOSSIBLE, constraint))
        except Refused as error:
            refused = error
            continue
        if _obeyed(reply.text):
            return constraint, reply.model
        blanks = blanks or _writes_blanks(reply)
    if not unconstrained and blanks:
        raise SurgeryR1Error(
            f"{client.name} obeys a JSON schema, but its model writes blanks between the parts, where JSON allows any "
            "number, until it is cut off",
            fix="start vllm serve with --structured-outputs-config "
            '\'{"backend": "xgrammar", "disable_any_whitespace": true}\'; or go on with --unconstrained',
        )
    if not unconstrained:
        how = f"refuses it: {refused.what}" if refused is not None else "it replies to an impossible schema with words"
        raise SurgeryR1Error(
            f"{client.name} holds no reply to a JSON schema ({how})",
            fix="use a server that does, such as vllm serve (structured_outputs), or go on with --unconstrained: "
            "replies are read as they come, those without JSON count as wrong, and every line says so",
        )
    return "none", client.ask(model, _HELLO).model


def _obeyed(text: str) -> bool:
    try:
        return bool(json.loads(text.rpartition("</think>")[2]) == {"probe": _WORD})
    except ValueError:
        return False


def _writes_blanks(reply: ChatReply) -> bool:
    """Whether a reply is the beginning of the impossible one, and blanks up to its end."""
    written = "".join(reply.text.split())
    whole = json.dumps({"probe": _WORD}, separators=(",", ":"))
    return reply.finish == "length" and bool(written) and whole.startswith(written)


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent for a sample; ``pixels`` of its frame and its examples' together, as the model sees them."""

    sample: Sample
    messages: list[dict[str, Any]]
    pixels: int


class NativeServer:
    """Asks a chat server, several requests at a time. Lines come as their replies are done.

    Args:
        served: the model's name at the server.
        served_as: what the server calls it in its replies, from :func:`find_constraint`.
        factor: pixels along a side of an image token where frames are resized here, before they are sent; else 0.
    """

    name = "endpoint"

    def __init__(
        self,
        client: Client,
        served: str,
        served_as: str,
        questions: NativeQuestions,
        options: NativeOptions,
        constraint: str,
        concurrency: int,
        factor: int = 0,
    ) -> None:
        self._client, self._served, self._served_as = client, served, served_as
        self._questions = questions
        self._constraint, self._concurrency, self._factor = constraint, concurrency, factor
        # Examples come again with every question.
        self._url = lru_cache(maxsize=8 + 16 * options.few_shot)(self._frame_url)
        self._fingerprints: dict[str, None] = {}

    def replies(self, samples: Sequence[Sample]) -> Iterator[list[NumberedLine]]:
        """The line of each sample, with its number, as replies are done.

        Raises:
            SurgeryR1Error: when the server cannot be used, or another model answers; what others have been answered by
                then has come out.
        """
        if not samples:
            return
        # Alone, before other frames go out: a server that cannot be used is noticed.
        yield [(0, self._ask(self._request(samples[0])))]
        requests = (self._request(sample) for sample in samples[1:])
        for number, line in finished_map(self._ask, requests, self._concurrency, self._client.stop):
            yield [(number + 1, line)]
        if len(self._fingerprints) > 1:
            what = "%s: replies come from %d states of the server (system_fingerprint), as their lines say"
            logger.warning(what, self._client.name, len(self._fingerprints))

    def _request(self, sample: Sample) -> _Request:
        views: list[View] = []

        def image(path: Path, view: View) -> dict[str, Any]:
            views.append(view)
            return {"type": "image_url", "image_url": {"url": self._url(path, view)}}

        messages = self._questions.conversation(sample, image)
        return _Request(sample, messages, sum(view.input_width * view.input_height for view in views))

    def _frame_url(self, path: Path, view: View) -> str:
        if not self._factor:
            return frame_url(path)
        # At a size that the server's own resizing leaves alone: its pixels are those that boxes are read in.
        with opened_image(path) as image:
            size = view.input_width, view.input_height
            return image_url(image.convert("RGB").resize(size, resample=Image.Resampling.BICUBIC))

    def _ask(self, request: _Request) -> dict[str, Any]:
        sample = request.sample
        schema = self._questions.prompt_of(sample).schema()
        reply = self._client.ask(self._served, request.messages, extra=held_to(schema, self._constraint))
        self._check(request, reply)
        line = self._questions.line(sample, reply.text, cut_off=reply.finish == "length")
        if reply.finish == "content_filter":
            line["reply_problems"].append("filtered")
        if reply.fingerprint:
            self._fingerprints[reply.fingerprint] = None
            line["fingerprint"] = reply.fingerprint
        return line

    def _check(self, request: _Request, reply: ChatReply) -> None:
        """Refuse a reply of another model, one that the server broke off, and one to a smaller image than was sent."""
        sample = request.sample
        if reply.model != self._served_as:
            raise SurgeryR1Error(
                f"{self._client.name}: {reply.model or 'a model without a name'!r} answers, where "
                f"{self._served_as!r} did before",
                where=sample.id,
                fix="serve the first model again and run the same command: what it has answered is kept; or predict "
                "with the other one into another --out",
            )
        if reply.finish not in (*WHOLE, "length", "content_filter"):
            raise SurgeryR1Error(
                f"{self._client.name} ended a reply with {reply.finish!r}",
                where=sample.id,
                fix="see to the server and run again: what it has answered is kept",
            )
        tokens = request.pixels // self._factor**2 if self._factor else 0
        if 0 < reply.prompt_tokens < tokens:
            raise SurgeryR1Error(
                f"{self._client.name} reads {reply.prompt_tokens} tokens where the images alone have {tokens}: it "
                "makes them smaller, and boxes in pixels cannot be read",
                where=sample.id,
                fix="give its max_pixels as --max-pixels, or start it with larger ones",
            )
