"""``surgery-r1 serve``."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from surgery_r1._util.offline import stay_offline
from surgery_r1.cli.output import say
from surgery_r1.cli.predict import trained_model
from surgery_r1.errors import SurgeryR1Error

TOKEN_VARIABLE = "SURGERY_R1_SERVE_TOKEN"


def _say_now(text: str) -> None:
    """To whoever waits for the address at the other end of a pipe."""
    say(text)
    sys.stdout.flush()


@dataclass
class Serve:
    """Answer questions over HTTP, with a page for the browser, on this machine."""

    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A model folder, a run folder (its best), tiny or tiny-rft; several to compare them; by default demo/rft, or the
    shipped tiny-rft where there is none."""
    host: str = "127.0.0.1"
    """The address to listen at; other machines can ask only at another one, with a token."""
    port: int = 8765
    """The port to listen at; 0 takes any that is free."""
    token_file: Path | None = None
    """A file whose first line is the token that requests must bring; or put it into SURGERY_R1_SERVE_TOKEN."""
    host_name: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A name under which the server may be asked, beside localhost and addresses."""
    location_rule: Literal["image-normal", "image-flipped", "none"] = "image-normal"
    """How places follow from boxes in the labels that the model was trained on (data check tells)."""
    timeout: float = 60.0
    """Seconds that a request may take."""
    queue: int = 64
    """Requests that may wait."""
    max_body_mb: float = 20.0
    """Size of the largest request, in MiB."""
    max_megapixels: float = 25.0
    """Size of the largest frame, in million pixels."""
    max_new_tokens: int = 256
    """Upper bound of a reply, in tokens."""
    batch_size: int = 16
    """Questions that the model is given at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights as saved, or converted."""
    endpoint: str | None = None
    """A chat server that serves the model (vllm serve), such as http://127.0.0.1:8000/v1; --model names its folder."""
    served_model: str = ""
    """With --endpoint: the model's name there; by default what the server lists."""
    allow_remote_frames: bool = False
    """With --endpoint: frames may go to another machine."""

    def run(self) -> int:
        """Exit status 0 when it was told to stop; errors are raised."""
        stay_offline(False)
        token = self._token()
        models = self.model or (trained_model(),)
        from surgery_r1.geometry import location_rule
        from surgery_r1.serve.limits import Limits
        from surgery_r1.serve.run import ServeSettings, serve

        for flag in ("timeout", "queue", "max-body-mb", "max-megapixels", "max-new-tokens", "batch-size"):
            value = getattr(self, flag.replace("-", "_"))
            if not 0 < value < math.inf:
                raise SurgeryR1Error(f"--{flag} {value}", fix="give a number above 0")
        limits = Limits(
            body_bytes=int(self.max_body_mb * 2**20),
            pixels=int(self.max_megapixels * 1e6),
            waiting=self.queue,
            seconds=self.timeout,
            batch=self.batch_size,
            new_tokens=self.max_new_tokens,
        )
        rule = None if self.location_rule == "none" else location_rule(self.location_rule)
        settings = ServeSettings(
            tuple(models), self.host, self.port, token, self.host_name, rule, limits, self._server(), self.dtype
        )
        serve(settings, _say_now)
        return 0

    def _token(self) -> str:
        if self.token_file is None:
            return os.environ.get(TOKEN_VARIABLE, "").strip()
        try:
            lines = self.token_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SurgeryR1Error(f"the token cannot be read: {error}", where=self.token_file, fix="check it") from None
        if not lines or not lines[0].strip():
            raise SurgeryR1Error("holds no token", where=self.token_file, fix="write one into its first line")
        return lines[0].strip()

    def _server(self):
        if self.endpoint is None:
            for flag, given in (("served-model", self.served_model), ("allow-remote-frames", self.allow_remote_frames)):
                if given:
                    raise SurgeryR1Error(f"--{flag} without --endpoint", fix="name the server with --endpoint")
            return None
        from surgery_r1.evaluate.endpoint import KEY_VARIABLE, ServerOptions

        return ServerOptions(
            self.endpoint,
            served_model=self.served_model,
            key=os.environ.get(KEY_VARIABLE, ""),
            allow_remote=self.allow_remote_frames,
            timeout=self.timeout,
            retries=1,
        )
