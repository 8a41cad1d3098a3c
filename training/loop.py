"""What the three trainings share: a resumable optimizer loop with checkpoints, a learning-rate schedule and averaging.

Under torchrun every rank computes its share of each batch and gradients are averaged: on a CPU, processes of one thread
each train faster than one process of many threads, and far faster when the machine has other work to do.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from .optimizer import MuonAdamW

DECAY_SHARE = 0.25  # of the steps, at the end; before, the rate is constant, so that a run can be made longer
LAST_RATE = 0.02  # of the learning rate, at the very end


def ranks() -> tuple[int, int]:
    """(this rank, number of ranks); joins the process group under torchrun."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_world_size()))
    return dist.get_rank(), dist.get_world_size()


class Trainer:
    """Runs `loss(step)` for `steps` optimizer steps, saving itself so that a killed run goes on where it was."""

    def __init__(
        self,
        model: torch.nn.Module,
        folder: Path,
        steps: int,
        learning_rate: float,
        weight_decay: float = 0.01,
        warmup: int = 300,
        ema_decay: float = 0.0,
        outside: tuple[str, ...] = (),
    ):
        """`outside`: parts of the names of first and last layers and embeddings, which Muon is not for."""
        self.model, self.folder, self.steps, self.warmup = model, folder, steps, warmup
        self.learning_rate, self.ema_decay = learning_rate, ema_decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.rank, self.world = ranks()
        matrices = {name for name, p in self.parameters.items() if p.ndim > 1 and not any(k in name for k in outside)}
        self.optimizer = MuonAdamW(self.parameters, matrices, weight_decay, self.rank, self.world)
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()} if ema_decay else {}
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(
        self,
        loss: Callable[[int], torch.Tensor],
        save_every: int = 500,
        report: Callable[[], str] | None = None,
    ) -> None:
        """Trains to the end; `loss(step)` returns the scalar loss of that step's batch."""
        started, first, running = time.time(), self.step, None
        while self.step < self.steps:
            value = loss(self.step)
            value.backward()
            self._average_gradients()
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
            self.optimizer.step(self._learning_rate())
            self._average()
            self.step += 1
            latest = float(value.detach())
            running = latest if running is None else 0.98 * running + 0.02 * latest
            if self.step % 50 == 0 and self.rank == 0:
                pace = (time.time() - started) / (self.step - first)
                left = (self.steps - self.step) * pace / 60
                print(f"step {self.step}/{self.steps} loss {running:.4f} {left:.0f} min left", flush=True)
            if self.step % save_every == 0 or self.step == self.steps:
                self.save()
                if report and self.rank == 0:
                    print(report(), flush=True)

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights by name (the current ones without averaging)."""
        return self.ema or {name: p.detach() for name, p in self.parameters.items()}

    def save(self) -> None:
        """Writes the checkpoint on rank 0; every rank must call it."""
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"ema.{name}": p for name, p in self.ema.items()}
        tensors |= self.optimizer.state()
        if self.rank:
            return
        part = self.folder / "checkpoint.part"
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"state": json.dumps({"step": self.step})})
        part.replace(self.folder / "checkpoint.safetensors")

    def _resume(self) -> None:
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self.step = int(json.loads(file.metadata()["state"])["step"])
        tensors = load_file(path)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"model.{name}"])
                if self.ema:
                    self.ema[name].copy_(tensors[f"ema.{name}"])
        self.optimizer.load_state(tensors, self.step)
        print(f"resumed at step {self.step}", flush=True)

    def _learning_rate(self) -> float:
        """Warm-up, constant, then half a cosine down: only the end depends on how long the run is."""
        warm = min(1.0, (self.step + 1) / self.warmup)
        decay_steps = DECAY_SHARE * self.steps
        progress = max(0.0, (self.step - (self.steps - decay_steps)) / decay_steps)
        return self.learning_rate * warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _average(self) -> None:
        if self.ema:
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - decay)


def autocast() -> torch.autocast:
    """bf16 where the CPU multiplies it fast."""
    return torch.autocast("cpu", torch.bfloat16)


def batch_rows(step: int, rows: int | torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """The rows of step's batch: random without state, so that a resumed run sees what an undisturbed one sees.

    `rows`: their number, or what each one's chance is proportional to.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    if isinstance(rows, torch.Tensor):
        return torch.multinomial(rows, batch, replacement=True, generator=generator)
    return torch.randint(rows, (batch,), generator=generator)
