"""Muon, for matrices and convolutions of the miniature: fewer iterations where each one is dear."""

from __future__ import annotations

from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps (Jordan et al., 2024).

    Parameters of more than two axes count as matrices (first axis, all others). The update is
    scaled to a root mean square of about 0.2, so that learning rates are those of AdamW. `dtype`
    is that of the Newton-Schulz steps; bfloat16 is enough for them.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float | torch.Tensor,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["mean"], group["momentum"]).flatten(1)
                update = orthogonal(update, self.dtype) * (0.2 * max(update.shape) ** 0.5)
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.view_as(parameter) * group["lr"])


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """About the nearest matrix (m, n) with singular values of one, which come out in 0.7 to 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-7)).to(dtype)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * (square @ square) - 4.7750 * square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Together:
    """Several optimisers as one, for the trainer and its checkpoints."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def set_lr(self, *rates: torch.Tensor) -> None:
        """One tensor for each optimiser in turn, which the trainer fills before every step."""
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate
