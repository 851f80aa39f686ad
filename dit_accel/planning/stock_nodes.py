"""Reads the nodes of a diffusers scheduler, and spreads or shifts them.

In: a scheduler, and what a pipeline passes to its `set_timesteps`. Out: `Nodes`.
Knows the schedulers of the supported families: flow matching (Euler and UniPC), and DDIM with
v-prediction. The timesteps are set on a copy of the scheduler, with the dynamic shift if there is
one.
Source: ours.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from dit_accel.planning.nodes import Kind, Nodes, shifted


def stock_nodes(
    scheduler: Any,
    num_steps: int | None,
    sigmas: Any = None,
    mu: float | None = None,
    **others: Any,
) -> Nodes:
    """The nodes of a scheduler for a number of steps.

    Args:
        sigmas, mu: what the pipeline passes to `set_timesteps`; None: it does not pass it.

    Raises:
        ValueError: the kind of noise schedule is unknown; the error names the scheduler.
    """
    kind = kind_of(scheduler)
    asked = copy.deepcopy(scheduler)
    given = dict(others) | ({} if mu is None else {"mu": mu})
    if sigmas is not None:  # pipelines that pass sigmas pass n evenly spaced ones, from 1 to 1/n
        count = num_steps or len(sigmas)
        asked.set_timesteps(sigmas=np.linspace(1.0, 1.0 / count, count), **given)
    else:
        asked.set_timesteps(num_steps, **given)
    labels = asked.timesteps.double().cpu().flatten()
    if kind == "flow":
        times = asked.sigmas.double().cpu().flatten()[: len(labels) + 1]
        return Nodes("flow", times, labels)
    share = asked.alphas_cumprod.double().cpu()[labels.long()]
    return Nodes("v", torch.cat([angle(share), angle(_final(asked).double())[None]]), labels)


def kind_of(scheduler: Any) -> Kind:
    """The kind of prediction that a scheduler expects, and so of times: "flow" or "v".

    Raises:
        ValueError: it is neither; the error names the scheduler and what is accepted.
    """
    config = scheduler.config
    if config.get("prediction_type") == "v_prediction" and hasattr(
        scheduler, "final_alpha_cumprod"
    ):
        return "v"
    flow = type(scheduler).__name__.startswith("FlowMatch") or (
        config.get("use_flow_sigmas", False) and config.get("prediction_type") == "flow_prediction"
    )
    if flow:
        return "flow"
    raise ValueError(
        f"{type(scheduler).__name__} has a noise schedule that is not known here; accepted: flow "
        "matching, and DDIM with v-prediction"
    )


def angle(alpha_bar: torch.Tensor) -> torch.Tensor:
    """The time of v-prediction, float64, for a cumulative product of alphas."""
    share = alpha_bar.double().clamp(0, 1)
    return torch.atan2((1 - share).sqrt(), share.sqrt())


def _final(scheduler: Any) -> torch.Tensor:
    return torch.as_tensor(scheduler.final_alpha_cumprod).cpu()


def labels_of(nodes: Nodes, scheduler: Any) -> torch.Tensor:
    """The labels of nodes: integers if they and the scheduler's timesteps are, else float32."""
    whole = nodes.kind == "v" and bool((nodes.labels == nodes.labels.round()).all())
    whole = whole and not scheduler.timesteps.is_floating_point()
    return nodes.labels.long() if whole else nodes.labels.float()


def spread(nodes: Nodes, count: int, scheduler: Any) -> Nodes:
    """`count` nodes, evenly spaced over the index of the given ones, and interpolated between them.

    A stock schedule with few steps may waste one of them (FlowMatchEuler puts it just above 0).
    These nodes follow the schedule of the uncached run.
    """
    if not 1 <= count <= len(nodes):
        raise ValueError(f"count is {count}; accepted: 1 to {len(nodes)}")
    places = torch.arange(count, dtype=torch.float64) * len(nodes) / count
    below = places.floor().long()
    part = places - below
    if nodes.kind == "flow":
        times = torch.lerp(nodes.times[below], nodes.times[below + 1], part)
        scale = scheduler.config.num_train_timesteps
        return Nodes("flow", torch.cat([times, nodes.times[-1:]]), times * scale)
    ends = torch.cat([nodes.labels, nodes.labels[-1:] - nodes.labels[:-1].diff().abs()[-1:]])
    labels = torch.lerp(ends[below], ends[below + 1], part).round()
    return _at_labels(labels, nodes, scheduler)


def _at_labels(labels: torch.Tensor, nodes: Nodes, scheduler: Any) -> Nodes:
    times = angle(scheduler.alphas_cumprod.double().cpu()[labels.long()])
    return Nodes("v", torch.cat([times, nodes.times[-1:]]), labels)


def shift_nodes(nodes: Nodes, shift: float, scheduler: Any) -> Nodes:
    """The nodes with a flow shift on top of their own; 1 changes nothing.

    For v-prediction the labels are shifted, as shares of all training timesteps. The times are
    those of the new labels, because DDIM's alphas are given by label.
    """
    if shift == 1:
        return nodes
    if nodes.kind == "flow":
        times = shifted(nodes.times, shift)
        return Nodes("flow", times, times[:-1] * scheduler.config.num_train_timesteps)
    last = len(scheduler.alphas_cumprod) - 1
    labels = (shifted(nodes.labels / last, shift) * last).round().clamp(0, last)
    for index in range(1, len(labels)):  # rounding must not give two nodes one label
        labels[index] = min(float(labels[index]), float(labels[index - 1]) - 1)
    if labels[-1] < 0:
        raise ValueError(
            f"shift is {shift:g}, which gives several steps one timestep; accepted: a shift with "
            f"{len(labels)} different timesteps"
        )
    return _at_labels(labels, nodes, scheduler)
