"""The optimiser Muon, for matrices and convolutions of the miniature. It needs fewer iterations."""

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
            alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(tuple(parameter.shape), []).append(parameter)
            for parameters in alike.values():
                self._step(parameters, group)

    def _step(self, parameters: list[torch.Tensor], group: dict) -> None:
        """Parameters of one shape, orthogonalised in one batch."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
        means = [self.state[parameter]["mean"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, means, group["momentum"])
        batch = orthogonal(torch.stack(updates).flatten(2), self.dtype)
        batch = batch * (0.2 * max(batch.shape[1:]) ** 0.5) * group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(parameters, list(batch.view(-1, *parameters[0].shape)))


def orthogonal(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Approximately the nearest matrices (..., m, n) with singular values of one; they are 0.7 to
    1.2."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * (square @ square) - 4.7750 * square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


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


def split(
    model: torch.nn.Module, muon: float
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The parameters for Muon (matrices and convolutions without embeddings and the last layer),
    and the others."""
    outer = ("shared", "embed_tokens", "relative_attention_bias", "proj_out", "heads")
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        inner = min(parameter.flatten(1).shape) > 1 if parameter.ndim >= 2 else False
        inner = inner and not any(part in name for part in outer)
        (matrices if muon and inner else rest).append(parameter)
    return matrices, rest
