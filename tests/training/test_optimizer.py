"""Muon for matrices, AdamW for the rest, on one rank and on several."""

from __future__ import annotations

import copy

import pytest
import torch

from training.optimizer import MuonAdamW, _share


def _optimizer(model, matrices, rank=0, world=1):
    return MuonAdamW(dict(model.named_parameters()), matrices, weight_decay=0.0, rank=rank, world=world)


def _give_gradients(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_matrix_moves_against_the_orthogonal_factor_of_its_gradient():
    model = torch.nn.Linear(6, 4, bias=False)
    before = model.weight.detach().clone()
    _give_gradients(model)
    left, _, right = torch.linalg.svd(model.weight.grad, full_matrices=False)
    _optimizer(model, {"weight"}).step(0.01)
    moved = (before - model.weight.detach()) / (0.01 * 0.2 * 6**0.5)
    # Five Newton-Schulz iterations bring singular values near one, not onto it.
    assert torch.linalg.svdvals(moved).tolist() == pytest.approx([1.0] * 4, abs=0.5)
    assert float((moved * (left @ right)).sum() / (moved.norm() * 2.0)) > 0.95


def test_a_vector_and_what_muon_is_not_for_move_by_adamw():
    model = torch.nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _give_gradients(model)
    signs = {name: p.grad.sign() for name, p in model.named_parameters()}
    _optimizer(model, set()).step(0.1)
    for name, parameter in model.named_parameters():  # Adam's first step is the learning rate against the sign
        assert torch.allclose(before[name] - parameter.detach(), 0.1 * signs[name], atol=1e-5)


def test_a_convolution_moves_the_same_way_however_its_memory_lies():
    plain = torch.nn.Conv2d(3, 5, 3, bias=False)
    blocked = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for model in (plain, blocked):
        _give_gradients(model)
        optimizer = _optimizer(model, {"weight"})
        optimizer.step(0.1)
    assert blocked.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(plain.weight, blocked.weight, atol=2e-2 * 0.1)  # orthogonalized in bfloat16


def test_every_matrix_has_one_rank_and_the_ranks_have_like_shares():
    model = torch.nn.Sequential(*[torch.nn.Linear(size, size, bias=False) for size in (64, 64, 32, 32, 16)])
    parameters = dict(model.named_parameters())
    shares = [_share(parameters, sorted(parameters), rank, 2) for rank in (0, 1)]
    assert shares[0] | shares[1] == set(parameters)
    assert not shares[0] & shares[1]
    assert {"0.weight", "1.weight"} - shares[0] and {"0.weight", "1.weight"} - shares[1]
