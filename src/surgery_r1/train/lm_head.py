"""TRL's projection onto the vocabulary, of the tokens alone that have a label.

On a device without Triton TRL projects and scores every token, frames and questions too, so that a compiler meets one
shape; a CPU compiles nothing. Its tiles are as wide as they may become for any vocabulary. Log-probabilities and
gradients of the tokens stay what they were to the last bit, those of the vocabulary to rounding
(``tests/test_lm_head.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.trainer import utils

from surgery_r1._util.overriding import overriding


@contextmanager
def labelled_alone(model: Any) -> Iterator[None]:
    """Let forwards of ``model`` with ``fused_lm_head`` project labelled tokens alone, also on a CPU."""
    theirs, tile = utils._use_triton, utils._CHUNKED_LOGPROB_CHUNK_SIZE
    vocabulary = model.config.get_text_config().vocab_size
    with (
        overriding(utils, "_use_triton", lambda device: device.type == "cpu" or theirs(device)),
        overriding(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", min(tile, vocabulary)),
    ):
        yield
