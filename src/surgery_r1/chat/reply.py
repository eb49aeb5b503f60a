"""What a chat server replied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Names that servers have for an end that the model has chosen; at any other the text may be cut off.
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
#: Where servers put what stood between ``<think>`` and ``</think>``: older ones the first, newer vLLM the second.
_REASONING = ("reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A reply.

    Attributes:
        text: of the reply, ``<think>`` and all; empty when there was none.
        finish: why it ended: ``stop``, ``length`` (cut off), ``content_filter``, or ``refused`` where the request was.
        prompt_tokens, completion_tokens: as the server counted them, 0 where it did not.
        model, fingerprint: what has answered, as the server says; empty where it does not.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    fingerprint: str = ""


class NoCompletion(Exception):
    """The server answered something else than what was asked for."""


def read_completion(done: Any) -> ChatReply:
    """The reply in a chat completion, with what was thought put back where it was written.

    Raises:
        NoCompletion: when it holds none.
    """
    try:
        choice = done.choices[0]
        finish = str(choice.finish_reason or "stop")
        usage = getattr(done, "usage", None)
        by = (str(getattr(done, name, None) or "")[:200] for name in ("model", "system_fingerprint"))
        tokens = (int(usage.prompt_tokens or 0), int(usage.completion_tokens or 0)) if usage else (0, 0)
        # Half a character, as JSON can hold it, cannot be written to a file.
        text = _whole(choice.message, finish).encode("utf-8", "replace").decode()
    except (AttributeError, TypeError, IndexError, ValueError):
        raise NoCompletion(f"answers what is no chat completion: {done!r}") from None
    return ChatReply(text, finish, *tokens, *by)


def _whole(message: Any, finish: str) -> str:
    content = message.content or ""
    thought = next((str(found) for name in _REASONING if (found := getattr(message, name, None))), "")
    if not thought:
        return content
    # Cut off while it was still thinking, the tag was never closed.
    return f"<think>{thought}" + ("" if finish == "length" and not content else f"</think>{content}")
