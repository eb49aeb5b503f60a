"""From a model to its predictions and its numbers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from surgery_r1._util.progress import Progress
from surgery_r1.data.dataset import Dataset
from surgery_r1.errors import SurgeryR1Error
from surgery_r1.evaluate.endpoint import EndpointEngine, ServerOptions, find_served, open_client
from surgery_r1.evaluate.generation import GenerationOptions, TransformersEngine
from surgery_r1.evaluate.predict import predict, refuse_taken
from surgery_r1.evaluate.score import score_predictions
from surgery_r1.evaluate.specialist import predict_with_specialist
from surgery_r1.evaluate.vllm_engine import VllmEngine, refuse_without_vllm
from surgery_r1.models.load import Bundle, engine_sha256, from_pretrained, weights_sha256
from surgery_r1.models.reply_forms import check_reply_form
from surgery_r1.models.reply_tokens import banned_for
from surgery_r1.models.sharing.vision_features import keep_frozen_features
from surgery_r1.models.specialist.folder import specialist_folder


def predict_with_model(
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    options: GenerationOptions | None = None,
    *,
    limit: int = 0,
    dtype: str = "auto",
    pixels: tuple[int, int] = (0, 0),
    name: str | None = None,
    engine: str = "transformers",
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Load a model and write ``predictions.jsonl``; the number of predictions made in this call.

    Args:
        model: see :func:`surgery_r1.models.load.resolve`; or a specialist, which is asked in its own way.
        limit: predict only that many questions, evenly spread (0: all).
        dtype: of the weights, see :func:`surgery_r1.models.load.from_pretrained`.
        pixels: lower and upper limit of the resized image; 0 takes the model's own.
        name: what the lines call the model; its path by default.
        engine: ``transformers``, our own, or ``vllm`` in this process.

    Raises:
        SurgeryR1Error: for no such model, an engine that is not installed, a model that was not trained to reply as
            ``options`` ask, or as :func:`surgery_r1.evaluate.predict.predict`.
    """
    options = options or GenerationOptions()
    refuse_taken(out)
    if (specialist := specialist_folder(model)) is not None:
        if engine != "transformers":
            raise SurgeryR1Error(f"--engine {engine} with a specialist", where=specialist, fix="leave it out")
        how: dict[str, Any] = {"limit": limit, "allow_hub": allow_hub, "progress": progress}
        how |= {"name": name or str(model), "batch_size": options.batch_size}
        return predict_with_specialist(specialist, dataset, split, out, **how)
    if engine == "vllm":
        refuse_without_vllm()
    bundle = from_pretrained(
        model,
        dtype=dtype,
        min_pixels=pixels[0] or None,
        max_pixels=pixels[1] or None,
        allow_hub=allow_hub,
        with_model=engine != "vllm",
    )
    check_reply_form(bundle.info, options.reasoning, model)
    asked = VllmEngine(bundle, options, dtype) if engine == "vllm" else _own_engine(bundle, options)
    return predict(
        *(dataset, split, asked, bundle.info, out),
        model_name=name or str(model),
        weights_sha256=weights_sha256(bundle.folder),
        engine_sha256=engine_sha256(bundle),
        options=options,
        dtype=dtype,
        limit=limit,
        progress=progress,
    )


def _own_engine(bundle: Bundle, options: GenerationOptions) -> TransformersEngine:
    keep_frozen_features(bundle.model)
    return TransformersEngine(bundle.model, bundle.processor, bundle.info.box_space, options)


def predict_with_endpoint(
    server: ServerOptions,
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    options: GenerationOptions | None = None,
    *,
    limit: int = 0,
    allow_hub: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write ``predictions.jsonl`` with a model that a chat server has; the number of predictions made in this call.

    Args:
        server: where it is, and how it is asked.
        model: the folder that is served (or a copy of it, with or without weights), see
            :func:`surgery_r1.evaluate.endpoint.find_served`.

    Other arguments as in :func:`predict_with_model`.

    Raises:
        SurgeryR1Error: for a server that cannot be used, or has another model, chat template or pixel limits; for a
            model that was not trained to reply as ``options`` ask; or as
            :func:`surgery_r1.evaluate.predict.predict`.
    """
    options = options or GenerationOptions()
    refuse_taken(out)
    client, local = open_client(server, options.max_new_tokens)
    with closing(client):
        served = find_served(client, model, server.served_model, local, allow_hub=allow_hub)
        bundle = from_pretrained(served.folder, with_model=False, allow_hub=allow_hub)
        check_reply_form(bundle.info, options.reasoning, model)
        space, concurrency = bundle.info.box_space, server.concurrency
        asked = (client, served.name, bundle.processor, space, options, concurrency, banned_for(bundle))
        return predict(
            dataset,
            split,
            EndpointEngine(*asked),
            bundle.info,
            out,
            model_name=str(model),
            weights_sha256=served.weights_sha256,
            engine_sha256=engine_sha256(bundle),
            options=options,
            dtype=None,
            limit=limit,
            progress=progress,
        )


def predict_and_score(
    model: str | Path,
    dataset: Dataset,
    split: str,
    out: Path,
    options: GenerationOptions | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Predict a split with a model, where ``out`` holds no predictions yet, and score it into ``out``; the metrics.

    Arguments (``settings`` too) and errors as in :func:`predict_with_model` and
    :func:`surgery_r1.evaluate.score.score_predictions`.
    """
    predictions = out / "predictions.jsonl"
    if not predictions.exists():
        predict_with_model(model, dataset, split, predictions, options, **settings)
    return score_predictions(predictions, dataset, split, out)
