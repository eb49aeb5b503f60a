"""Scoring labelled tokens alone gives TRL's losses and gradients."""

from __future__ import annotations

import pytest
import torch
from trl.kernels import chunked_logprob
from trl.trainer import utils

from surgery_r1.models.tiny import architecture as tiny
from surgery_r1.models.tiny import text as tiny_text
from surgery_r1.train.lm_head import labelled_alone


@pytest.fixture(scope="module")
def model():
    model = tiny.build_model(tiny.build_config(tiny.build_tokenizer(tiny_text.corpus())), seed=2)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


@pytest.fixture
def projected(monkeypatch):
    """How many tokens went through the projection, by forward."""
    seen = []
    theirs = chunked_logprob.ChunkedLogProbFunction.forward

    def forward(ctx, hidden, *args):
        seen.append(len(hidden))
        return theirs(ctx, hidden, *args)

    monkeypatch.setattr(chunked_logprob.ChunkedLogProbFunction, "forward", staticmethod(forward))
    return seen


def scored(model, ids, labels):
    model.zero_grad()
    output = model(input_ids=ids, labels=labels, fused_lm_head=True)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_log_probabilities_and_gradients_are_trls(model, projected):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, 900, (3, 40), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.6, -100)
    plain, grads = scored(model, ids, labels)
    with labelled_alone(model):
        ours, our_grads = scored(model, ids, labels)
    assert projected == [3 * 39, int((labels[:, 1:] != -100).sum())]
    for name in ("log_probs", "entropy", "is_top1"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), atol=1e-6, rtol=1e-6)
    assert our_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_pass_without_a_label_has_a_loss_and_gradients_of_nothing(model):
    ids = torch.full((1, 9), 400)
    with labelled_alone(model):
        output, grads = scored(model, ids, torch.full_like(ids, -100))
    assert output.loss == 0
    assert all(not grad.any() for grad in grads.values())


def test_afterwards_trl_is_as_it_was(model):
    before = utils._use_triton, utils._CHUNKED_LOGPROB_CHUNK_SIZE
    with pytest.raises(KeyError), labelled_alone(model):
        tile = utils._CHUNKED_LOGPROB_CHUNK_SIZE
        assert tile == model.config.get_text_config().vocab_size
        assert utils._use_triton(torch.device("cpu")) and not utils._use_triton(torch.device("meta"))
        raise KeyError
    assert before == (utils._use_triton, utils._CHUNKED_LOGPROB_CHUNK_SIZE)
