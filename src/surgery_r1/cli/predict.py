"""``surgery-r1 predict`` and ``surgery-r1 ask``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from surgery_r1._util.files import atomic_write, dump_json
from surgery_r1._util.offline import stay_offline
from surgery_r1._util.progress import ProgressBar
from surgery_r1.cli.output import say
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.data.dataset import Dataset
    from surgery_r1.evaluate.endpoint import ServerOptions
    from surgery_r1.evaluate.generation import GenerationOptions


@dataclass
class PredictCommand:
    """Predict every question of a split; resumable after a kill, raw text is kept."""

    model: str
    """A model folder, a run folder (its best), or tiny."""
    data: Path
    """A dataset folder."""
    split: Literal["train", "dev", "val", "test"]
    """The split to predict."""
    out: Path
    """The predictions.jsonl to write."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    batch_size: int = 32
    """Prompts per generation batch."""
    max_new_tokens: int = 256
    """Upper bound of a reply, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights as saved, or converted."""
    no_reasoning: bool = False
    """Ask for answer and box without reasoning, of a model that was trained so too (sft.direct_answers)."""
    limit: int = 0
    """Predict only that many questions, evenly spread; scoring counts the others as wrong."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates in this process: our own engine on transformers, or vLLM where it is installed."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""
    endpoint: str | None = None
    """Ask a chat server that serves the model (vllm serve, transformers serve), such as http://127.0.0.1:8000/v1."""
    served_model: str = ""
    """With --endpoint: the model's name there; by default what the server lists, or --model as it stands."""
    concurrency: int = 8
    """With --endpoint: requests at a time."""
    timeout: float = 120.0
    """With --endpoint: seconds that a reply may take."""
    retries: int = 6
    """With --endpoint: how often a request that failed is sent again, with growing pauses."""
    allow_remote_frames: bool = False
    """With --endpoint: frames may go to another machine."""
    prompt: Literal["own", "native"] = "own"
    """How it is asked: as models trained here are, or any model in its own words, with the answers to choose from."""
    few_shot: int = 0
    """With --prompt native: examples out of train before each question."""
    box_space: Literal["pixels", "norm1000", "norm100", "norm1", "source"] | None = None
    """With --prompt native: units of its boxes (pixels: of the resized image); by default those of its family."""
    box_format: Literal["xyxy", "xywh", "cxcywh", "yxyx"] | None = None
    """With --prompt native: what the four numbers of its boxes are; two corners by default."""
    unconstrained: bool = False
    """With --prompt native and --endpoint: go on where the server holds no reply to a JSON schema."""
    max_pixels: int = 0
    """With --prompt native: pixels of the resized frame at most; by default as the model's folder says."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(self.allow_hub)
        self._check_flags()
        from surgery_r1.data.dataset import open_dataset

        # Before the libraries are imported, which takes seconds: a wrong path is told at once.
        dataset = open_dataset(self.data, images=self.images)

        from surgery_r1.evaluate.generation import GenerationOptions
        from surgery_r1.evaluate.run import predict_with_endpoint, predict_with_model

        options = GenerationOptions(self.batch_size, self.max_new_tokens, not self.no_reasoning)
        with ProgressBar("predicting", "questions") as progress:
            how: dict[str, Any] = {"limit": self.limit, "allow_hub": self.allow_hub, "progress": progress}
            asked = (self.model, dataset, self.split, self.out, options)
            if self.prompt == "native":
                done = self._native(dataset, options, how)
            elif self.endpoint is None:
                done = predict_with_model(*asked, dtype=self.dtype, engine=self.engine, **how)
            else:
                done = predict_with_endpoint(self._server(self.endpoint), *asked, **how)
        say(f"{done:,} questions predicted: {self.out}")
        return 0

    def _native(self, dataset: Dataset, options: GenerationOptions, how: dict[str, Any]) -> int:
        from surgery_r1.evaluate.native.run import NativeSettings, predict_native

        settings = NativeSettings(
            self.box_space, self.box_format, self.few_shot, self.unconstrained, max_pixels=self.max_pixels
        )
        server = None if self.endpoint is None else self._server(self.endpoint)
        asked = (self.model, dataset, self.split, self.out, settings, options)
        return predict_native(*asked, server=server, dtype=self.dtype, **how)

    def _check_native_flags(self) -> None:
        names = ("few_shot", "box_space", "box_format", "unconstrained", "max_pixels")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if self.prompt == "own" and given:
            raise SurgeryR1Error(f"{given[0]} without --prompt native", fix="add it, or leave the flag out")
        if min(self.few_shot, self.max_pixels) < 0:
            raise SurgeryR1Error(f"{given[0]} below 0", fix="leave it out, or give more")
        if self.prompt == "native" and self.engine != "transformers":
            fix = "start vllm serve and give --endpoint: it is also held to the answers there"
            raise SurgeryR1Error(f"--engine {self.engine} with --prompt native", fix=fix)
        if self.unconstrained and self.endpoint is None:
            raise SurgeryR1Error("--unconstrained without --endpoint", fix="leave it out: nothing holds a model here")

    def _check_flags(self) -> None:
        """Refuse flags that would be without effect."""
        self._check_native_flags()
        given = {"--served-model": bool(self.served_model), "--allow-remote-frames": self.allow_remote_frames}
        alone = [flag for flag, is_given in given.items() if is_given]
        if self.endpoint is None and alone:
            raise SurgeryR1Error(f"{alone[0]} without --endpoint", fix="name the server with --endpoint")
        if self.endpoint is not None and self.engine != "transformers":
            raise SurgeryR1Error(f"--engine {self.engine} with --endpoint", fix="leave one of them out")
        if self.endpoint is not None and self.dtype != "auto":
            fix = "leave --dtype out, and start the server with it"
            raise SurgeryR1Error(f"--dtype {self.dtype} with --endpoint: the server decides", fix=fix)

    def _server(self, endpoint: str) -> ServerOptions:
        from surgery_r1.evaluate.endpoint import KEY_VARIABLE, ServerOptions

        return ServerOptions(
            endpoint,
            served_model=self.served_model,
            key=os.environ.get(KEY_VARIABLE, ""),
            allow_remote=self.allow_remote_frames,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
        )


@dataclass
class Ask:
    """Ask one question about one image: reasoning, answer, box, and a picture with the box."""

    image: tyro.conf.Positional[Path]
    """The frame."""
    question: tyro.conf.Positional[str]
    """Such as "Where is bipolar_forceps located?"."""
    model: str | None = None
    """A model folder, a run folder, tiny (the untrained base, which cannot do the task) or tiny-rft (after RFT on drawn
    scenes); by default demo/rft, or tiny-rft where there is none."""
    out: Path | None = None
    """The picture to write; IMAGE.answer.png in the current folder by default."""
    no_reasoning: bool = False
    """Ask for answer and box without reasoning, of a model that was trained so too (sft.direct_answers)."""
    max_new_tokens: int = 256
    """Upper bound of the reply, in tokens."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(self.allow_hub)
        if not self.image.exists():
            raise SurgeryR1Error("no such image", where=str(self.image), fix="check the path")
        model = self.model or trained_model()
        from surgery_r1.inference import load

        reply = load(model, allow_hub=self.allow_hub).ask(
            self.image, self.question, reasoning=not self.no_reasoning, max_new_tokens=self.max_new_tokens
        )
        picture = self.out or Path(f"{self.image.stem}.answer.png")
        with atomic_write(picture, "wb") as handle:
            reply.picture().save(handle, format="PNG")
        if self.json:
            say(dump_json({**reply.to_json(), "picture": str(picture)}, indent=2))
            return 0
        box = "(none)" if reply.box_px is None else ", ".join(f"{v:.1f}" for v in reply.box_px) + "  (pixels)"
        say(f"rationale: {reply.rationale or '(none)'}")
        say(f"answer:    {reply.answer or '(none)'}")
        say(f"box:       {box}")
        if reply.problems:
            say(f"problems:  {', '.join(reply.problems)}; the model wrote {reply.text!r}")
        say(f"picture:   {picture}")
        return 0


def trained_model() -> str:
    """The RFT model of the demo in the current folder; without a demo the shipped one."""
    demo = Path("demo/rft")
    return str(demo) if (demo / "result.json").is_file() else "tiny-rft"
