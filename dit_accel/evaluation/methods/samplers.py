"""Puts another sampler in place of a pipeline's scheduler, and takes it off.

In: a pipeline, the nodes that are wanted of its own noise schedule, and a way to step between them.
Out: the pipeline with a `NodeScheduler`, then restored.
Knows how diffusers' pipelines use a scheduler. The pipeline's own one is never touched.
Source: ours; UniPC (arXiv 2302.04867), DPM-Solver++ (2211.01095) and DEIS (2204.13902) are those of
diffusers.
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
    """How the latents go from one node to the next."""

    def step(self, index: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents at the next node; `index` counts up from 0."""


MakeStepper = Callable[[Any, Nodes], Stepper]  # of the pipeline's scheduler and the nodes


class NodeScheduler:
    """A diffusers scheduler that calls the model at chosen nodes.

    Args:
        stock: the pipeline's scheduler.
        choose: from the stock nodes to those where the model is called.
        stepper: how to step between them.
        grid: steps of the stock schedule that `choose` gets; None: as many as are asked for.
    """

    order = 1

    def __init__(
        self, stock: Any, choose: Choose, stepper: MakeStepper, grid: int | None = None
    ) -> None:
        self._stock, self._choose, self._make, self._grid = stock, choose, stepper, grid
        self.config = stock.config
        self.init_noise_sigma = getattr(stock, "init_noise_sigma", 1.0)  # flow schedulers have none
        self.timesteps, self.sigmas = stock.timesteps, torch.zeros(0)
        self._step = 0
        self._stepper: Stepper | None = None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None,
        mu: float | None = None, **others: Any,
    ) -> None:  # fmt: skip
        """Choose the nodes; arguments as the stock scheduler takes them."""
        nodes = self._choose(
            stock_nodes(self._stock, self._grid or num_inference_steps, sigmas, mu, **others)
        )
        self.timesteps = labels_of(nodes, self._stock).to(device)
        self.sigmas = nodes.sigmas.float()
        self._stepper, self._step = self._make(self._stock, nodes), 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The pipelines set 0."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The latents as they are."""
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
    """A pipeline with another sampler; arguments as of `NodeScheduler`."""
    stock = pipe.scheduler
    own = NodeScheduler(stock, choose, stepper, grid)
    # Past diffusers' __setattr__, which would write our class into the pipeline's configuration.
    vars(pipe)["scheduler"] = own
    try:
        yield
    finally:
        vars(pipe)["scheduler"] = stock


# --- steppers ---


@dataclass
class WeightedSums:
    """Steps by the weights of a `LinearSampler`; keeps the start noise and all predictions."""

    sampler: LinearSampler

    def __post_init__(self) -> None:
        self._noise: torch.Tensor | None = None
        self._predictions: list[torch.Tensor] = []
        # The start noise is stored where the sum starts anew from it; else steps are added up.
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
    """Steps by a multistep scheduler of diffusers, on any nodes.

    Args:
        name: the scheduler's class in diffusers.
        first, last: the largest and least sigma that its formulas bear, as of
            `Nodes.solver_sigmas`.
        options: of its configuration, beside those of the noise schedule.
    """

    def __init__(
        self, stock: Any, nodes: Nodes, name: str, *, first: float | None = None,
        last: float = 0.0, **options: Any,
    ) -> None:  # fmt: skip
        import diffusers

        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        kind = flow if nodes.kind == "flow" else {"prediction_type": "v_prediction"}
        solver = getattr(diffusers, name)(
            num_train_timesteps=stock.config.num_train_timesteps, **kind, **options
        )
        solver.set_timesteps(len(nodes))  # makes its buffers; the nodes are then put in
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

# DEIS predicts the noise and divides by alpha: diffusers, too, starts it at this sigma. It and bh1
# are not finite where they end at 0; the noise at 1e-4 is 80 dB below the clip.
DEIS_FIRST, LAST = 0.999, 1e-4


def diffusers_solver(
    name: str, *, first: float | None = None, last: float = 0.0, **options: Any
) -> MakeStepper:
    """A stepper by a multistep scheduler of diffusers; `first` and `last` as of `DiffusersSolver`,
    `first` for flows only."""

    def make(stock: Any, nodes: Nodes) -> DiffusersSolver:
        limit = first if nodes.kind == "flow" else None
        return DiffusersSolver(stock, nodes, name, first=limit, last=last, **options)

    return make


def adams_bashforth_solver(order: int) -> MakeStepper:
    """A stepper by Adams-Bashforth."""
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
