"""Muon for the matrices inside a network, AdamW for everything else, shared out over the ranks.

Muon replaces the momentum of a matrix by the nearest orthogonal one (Jordan et al. 2024). Scaled so that its updates
are as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), it takes AdamW's learning rate. The orthogonalization costs
a sixth of a training step here, so every rank does a part of the matrices and the results are exchanged.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

Parameters = dict[str, torch.nn.Parameter]


class MuonAdamW:
    """Steps `parameters`; those named in `matrices` by Muon, a convolution's kernel seen as a matrix (out, rest)."""

    def __init__(self, parameters: Parameters, matrices: set[str], weight_decay: float, rank: int, world: int):
        self.parameters, self.matrices, self.world = parameters, sorted(matrices), world
        self.owned = _share(parameters, self.matrices, rank, world)
        self.views = {name: torch.nn.Parameter(_as_matrix(parameters[name].data)) for name in self.owned}
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.views:  # a rank may have none
            self.muon = torch.optim.Muon(
                list(self.views.values()), weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(self.muon)
        rest = [p for name, p in parameters.items() if name not in matrices]
        self.adam = torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        self.optimizers.append(self.adam)

    def step(self, learning_rate: float) -> None:
        """One update from the gradients, which all ranks must have averaged; clears them."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        for name, view in self.views.items():
            gradient = self.parameters[name].grad
            view.grad = None if gradient is None else _as_matrix(gradient, like=self.parameters[name])
        for optimizer in self.optimizers:
            optimizer.step()
        self._exchange()
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that a resumed run needs, by name; ranks hold different momenta, so all must call this."""
        tensors = {}
        for name, parameter in self.parameters.items():
            if name in self.matrices:
                continue
            if state := self.adam.state.get(parameter):
                tensors[f"mean.{name}"], tensors[f"square.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        for name in self.matrices:
            momentum = torch.zeros(_as_matrix(self.parameters[name].data).shape)
            if name in self.owned and (state := self.muon.state.get(self.views[name])):
                momentum.copy_(state["momentum_buffer"])
            if self.world > 1:
                dist.all_reduce(momentum)
            tensors[f"momentum.{name}"] = momentum
        return tensors

    def load_state(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Takes what `state` gave after `step` steps."""
        for name, parameter in self.parameters.items():
            if f"mean.{name}" in tensors:
                self.adam.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"mean.{name}"],
                    "exp_avg_sq": tensors[f"square.{name}"],
                }
        for name, view in self.views.items():
            self.muon.state[view] = {"momentum_buffer": tensors[f"momentum.{name}"]}

    @torch.no_grad()
    def _exchange(self) -> None:
        """Every rank gets the matrices that the others stepped."""
        if self.world == 1:
            return
        views = [_as_matrix(self.parameters[name].data) for name in self.matrices]
        parts = [
            view.reshape(-1) if name in self.owned else view.new_zeros(view.numel())
            for name, view in zip(self.matrices, views, strict=True)
        ]
        flat = torch.cat(parts)
        dist.all_reduce(flat)
        for view, part in zip(views, flat.split([v.numel() for v in views]), strict=True):
            view.copy_(part.view_as(view))


def _as_matrix(tensor: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """A view (out, rest) of a tensor, whichever way its memory lies; the order of the columns does not matter to Muon.

    A gradient may lie otherwise than its parameter: `like` gives the order to bring it into, at the cost of a copy.
    """
    if tensor.ndim == 2:
        return tensor
    like = tensor if like is None else like
    if like.is_contiguous():
        return tensor.reshape(tensor.shape[0], -1) if tensor is not like else tensor.view(tensor.shape[0], -1)
    last = tensor.permute(0, 2, 3, 1)
    return last.reshape(tensor.shape[0], -1) if tensor is not like else last.view(tensor.shape[0], -1)


def _share(parameters: Parameters, names: list[str], rank: int, world: int) -> set[str]:
    """The matrices of this rank: the costliest first, each to the rank that has the least to do."""

    def cost(name: str) -> float:
        rows, columns = _as_matrix(parameters[name].data).shape
        return min(rows, columns) ** 2 * (max(rows, columns) + min(rows, columns))

    loads, owner = [0.0] * world, {}
    for name in sorted(names, key=lambda name: (-cost(name), name)):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += cost(name)
    return {name for name in names if owner[name] == rank}
