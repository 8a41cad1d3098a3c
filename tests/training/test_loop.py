"""The training loop: an interrupted run ends where an undisturbed one ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.loop import Trainer, batch_rows


class Killed(Exception):
    pass


def _train(folder: Path, killed_at: int | None = None) -> None:
    """Trains a tiny model for 8 steps, saving every 2nd; the process may die while computing a step's loss."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    trainer = Trainer(model, folder, 8, learning_rate=0.1, warmup=2, ema_decay=0.9, outside=("1.",))

    def loss(step: int) -> torch.Tensor:
        if step == killed_at:
            raise Killed
        rows = batch_rows(step, 100, 4, seed=1).float()
        return model(rows[:, None].repeat(1, 3) / 100).square().mean()

    trainer.run(loss, save_every=2)


@pytest.mark.parametrize("killed_at", [1, 3, 7])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, killed_at):
    _train(tmp_path / "undisturbed")
    with pytest.raises(Killed):
        _train(tmp_path / "killed", killed_at)
    _train(tmp_path / "killed")
    expected = load_file(tmp_path / "undisturbed" / "checkpoint.safetensors")
    found = load_file(tmp_path / "killed" / "checkpoint.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_only_the_end_of_the_schedule_depends_on_its_length(tmp_path):
    rates = {}
    for steps in (100, 200):
        trainer = Trainer(torch.nn.Linear(1, 1), tmp_path / str(steps), steps, learning_rate=1.0, warmup=10)
        for step in (0, 50, steps - 1):
            trainer.step = step
            rates[steps, step] = trainer._learning_rate()
    assert rates[100, 0] == rates[200, 0] == pytest.approx(0.1)
    assert rates[100, 50] == rates[200, 50] == 1.0
    assert rates[100, 99] == pytest.approx(rates[200, 199], abs=0.01)
    assert rates[100, 99] < 0.03
