"""Replaces the scheduler of a pipeline by another sampler, and restores it.

In: a pipeline, nodes of its own noise schedule, and a way to step between them. Out: the pipeline
with a `NodeScheduler`; it is restored afterwards.
Knows how diffusers' pipelines use a scheduler. The pipeline's own scheduler is not changed.
Source: ours. UniPC (arXiv 2302.04867), DPM-Solver++ (2211.01095) and DEIS (2204.13902) are the
implementations of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dit_accel.planning.nodes import LinearSampler, Nodes, adams_bashforth
from dit_accel.planning.stock_nodes import labels_of, stock_nodes

Choose = Callable[[Nodes], Nodes]


class Stepper(Protocol):
    """Moves the latents from one node to the next."""

    def step(self, index: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents at the next node; `index` counts up from 0."""


MakeStepper = Callable[[Any, Nodes], Stepper]  # from the pipeline's scheduler and the nodes


class NodeScheduler:
    """A diffusers scheduler that calls the model at chosen nodes.

    Args:
        stock: the pipeline's scheduler.
        choose: maps the stock nodes to those where the model is called.
        stepper: how to step between them.
        grid: number of steps in the stock schedule that `choose` gets; None: the requested number
            of steps.
    """

    order = 1

    def __init__(self, stock: Any, choose: Choose, stepper: MakeStepper, grid: int | None) -> None:
        self._stock, self._choose, self._make, self._grid = stock, choose, stepper, grid
        self.config = stock.config
        # flow schedulers do not have it
        self.init_noise_sigma = getattr(stock, "init_noise_sigma", 1.0)
        self.timesteps, self.sigmas = stock.timesteps, torch.zeros(0)
        self._step = 0
        self._stepper: Stepper | None = None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None,
        mu: float | None = None, **others: Any,
    ) -> None:  # fmt: skip
        """Choose the nodes. The arguments are those of the stock scheduler."""
        nodes = self._choose(
            stock_nodes(self._stock, self._grid or num_inference_steps, sigmas, mu, **others)
        )
        self.timesteps = labels_of(nodes, self._stock).to(device)
        self.sigmas = nodes.sigmas.float()
        self._stepper, self._step = self._make(self._stock, nodes), 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Does nothing: pipelines always set 0."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Returns the latents unchanged."""
        return sample

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:  # fmt: skip
        """The latents at the next node, as the only entry of a tuple."""
        assert self._stepper is not None
        latents = self._stepper.step(self._step, model_output.float(), sample.float())
        self._step += 1
        return (latents.to(sample.dtype),)


@contextmanager
def sampled(
    pipe: Any, choose: Choose, stepper: MakeStepper, grid: int | None = None
) -> Iterator[None]:
    """A pipeline with another sampler. Arguments: see `NodeScheduler`."""
    stock = pipe.scheduler
    own = NodeScheduler(stock, choose, stepper, grid)
    # Avoid diffusers' __setattr__, which would write our class into the pipeline's configuration.
    vars(pipe)["scheduler"] = own
    try:
        yield
    finally:
        vars(pipe)["scheduler"] = stock


# --- steppers ---


@dataclass
class WeightedSums:
    """Steps with the weights of a `LinearSampler`. It stores the starting noise and all
    predictions."""

    sampler: LinearSampler

    def __post_init__(self) -> None:
        self._noise: torch.Tensor | None = None
        self._predictions: list[torch.Tensor] = []
        # The starting noise is stored if each sum begins with it; else steps are added up.
        self._noise_too = bool((self.sampler.noise != 1).any())
        self._added = self.sampler.increments

    def step(self, index: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """See `Stepper`."""
        if index == 0:
            self._noise, self._predictions = latents, []
        self._predictions.append(prediction)
        table, total = self._added, latents
        if self._noise_too:
            assert self._noise is not None
            table, total = self.sampler.weights, float(self.sampler.noise[index]) * self._noise
        for weight, value in zip(table[index].tolist(), self._predictions, strict=False):
            if weight:
                total = total + weight * value
        return total


class DiffusersSolver:
    """Steps with a multistep scheduler of diffusers, on any nodes.

    Args:
        name: the scheduler's class in diffusers.
        first, last: the largest and smallest sigma with which its formulas work; see
            `Nodes.solver_sigmas`.
        options: settings of its configuration, except those of the noise schedule.
    """

    def __init__(
        self, stock: Any, nodes: Nodes, name: str, *, first: float | None = None,
        last: float, **options: Any,
    ) -> None:  # fmt: skip
        import diffusers

        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        kind = flow if nodes.kind == "flow" else {"prediction_type": "v_prediction"}
        solver = getattr(diffusers, name)(
            num_train_timesteps=stock.config.num_train_timesteps, **kind, **options
        )
        solver.set_timesteps(len(nodes))  # makes its buffers, which then get the nodes
        solver.sigmas = nodes.solver_sigmas(first, last)
        solver.timesteps = nodes.labels
        solver.set_begin_index(0)
        self._solver, self._labels = solver, nodes.labels

    def step(self, index: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """See `Stepper`."""
        found: torch.Tensor = self._solver.step(
            prediction, self._labels[index], latents, return_dict=False
        )[0]
        return found


# --- the solvers ---

# DEIS predicts the noise and divides by alpha. Diffusers also starts it at this sigma. DEIS and
# bh1 are not finite if they end at 0. The noise at 1e-4 is 80 dB below the clip.
DEIS_FIRST, LAST = 0.999, 1e-4


def diffusers_solver(
    name: str, *, first: float | None = None, last: float = 0.0, **options: Any
) -> MakeStepper:
    """A function that makes a stepper with a multistep scheduler of diffusers. For `first` and
    `last` see `DiffusersSolver`; `first` is for flows only."""

    def make(stock: Any, nodes: Nodes) -> DiffusersSolver:
        limit = first if nodes.kind == "flow" else None
        return DiffusersSolver(stock, nodes, name, first=limit, last=last, **options)

    return make


def adams_bashforth_solver(order: int) -> MakeStepper:
    """A function that makes a stepper with Adams-Bashforth."""
    return lambda stock, nodes: WeightedSums(adams_bashforth(nodes, order))


SOLVERS: dict[str, tuple[str, MakeStepper]] = {
    **{
        f"unipc-{order}{name}": (
            f"UniPC of order {order} ({kind})",
            diffusers_solver(
                "UniPCMultistepScheduler", last=last, solver_order=order, solver_type=kind
            ),
        )
        for order in (2, 3)
        for kind, name, last in (("bh2", "", 0.0), ("bh1", "/bh1", LAST))
    },
    **{
        f"dpmpp-{order}m": (
            f"DPM-Solver++ {order}M",
            diffusers_solver("DPMSolverMultistepScheduler", solver_order=order),
        )
        for order in (2, 3)
    },
    **{
        f"deis-{order}": (
            f"DEIS of order {order}",
            diffusers_solver(
                "DEISMultistepScheduler", first=DEIS_FIRST, last=LAST, solver_order=order
            ),
        )
        for order in (2, 3)
    },
    **{
        f"ab-{order}": (f"Adams-Bashforth of order {order}", adams_bashforth_solver(order))
        for order in (2, 3, 4)
    },
}
