"""The state of a sampler in training, and its file, from which training resumes.

In: an object with parameters, or a file. Out: the file, or the state from it.
Knows: safetensors with a header of texts, no pickle. Every tensor and number is checked.
Source: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dit_accel.core.files import placed

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, by its names


class HasParameters(Protocol):
    """An object that is trained."""

    parameters: dict[str, torch.Tensor]


Trained = TypeVar("Trained", bound=HasParameters)


@dataclass
class TrainingState(Generic[Trained]):
    """A sampler in training.

    Args:
        trainable: its parameters now.
        iteration: number of iterations done.
        moments: Adam's, `NAME.exp_avg` and `NAME.exp_avg_sq` of every parameter.
        best, best_db: the parameters that were best on the held-out clips, and their error.
    """

    trainable: Trained
    iteration: int = 0
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_db: float = math.inf

    def __post_init__(self) -> None:
        for name, value in self.trainable.parameters.items():
            self.best.setdefault(name, value.detach().clone())

    def look(self, error_db: float) -> None:
        """Store the parameters if their error is the least so far."""
        if error_db < self.best_db:
            self.best_db = error_db
            self.best = {n: v.detach().clone() for n, v in self.trainable.parameters.items()}

    def note(self, adam: torch.optim.Adam, iteration: int) -> None:
        """Store Adam's moments after an iteration."""
        self.iteration = iteration
        for name, value in self.trainable.parameters.items():
            known = adam.state.get(value, {})
            self.moments |= {f"{name}.{kind}": known[kind] for kind in MOMENTS if kind in known}

    def give(self, adam: torch.optim.Adam) -> None:
        """Restore Adam's moments."""
        for name, value in self.trainable.parameters.items():
            own = {k: self.moments.get(f"{name}.{k}", torch.zeros_like(value)) for k in MOMENTS}
            if self.iteration:
                adam.state[value] = {"step": torch.tensor(float(self.iteration)), **own}

    # --- the file ---

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        parts = {"parameters": self.trainable.parameters, "best": self.best,
                 "moments": self.moments}  # fmt: skip
        tensors = {
            f"{part}.{name}": value.detach().contiguous().cpu()
            for part, values in parts.items() for name, value in values.items()
        }  # fmt: skip
        head = {"iteration": str(self.iteration), "best_db": repr(self.best_db)}
        with placed(path) as scratch:
            save_file(tensors, scratch, metadata=head)

    def load(self, path: Path) -> None:
        """Restore the state from a file.

        Raises:
            ValueError: the file is not a state of this sampler; the message names the file and the
                problem.
        """
        try:
            with safe_open(path, "pt") as file:
                head = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _wrong(path, str(error)) from error
        try:
            self.iteration, self.best_db = int(head["iteration"]), float(head["best_db"])
        except (KeyError, ValueError) as error:
            raise _wrong(path, f"its header is {head}") from error
        for name, value in self.trainable.parameters.items():
            with torch.no_grad():
                value.copy_(_taken(tensors, f"parameters.{name}", value, path))
            self.best[name] = _taken(tensors, f"best.{name}", value, path)
            for kind in MOMENTS:
                key = f"{name}.{kind}"
                if f"moments.{key}" in tensors:  # a parameter without gradients has no moments
                    self.moments[key] = _taken(tensors, f"moments.{key}", value, path)


def _taken(
    tensors: dict[str, torch.Tensor], name: str, like: torch.Tensor, path: Path
) -> torch.Tensor:
    """A tensor of the file, which must be finite and have the shape of another one; on that one's
    device."""
    found = tensors.get(name)
    if found is None or found.shape != like.shape or not bool(found.isfinite().all()):
        shape = "missing" if found is None else f"{tuple(found.shape)} or not finite"
        raise _wrong(path, f"{name} is {shape}; accepted: finite, {tuple(like.shape)}")
    return found.to(like)


def _wrong(path: Path, why: str) -> ValueError:
    return ValueError(f"training cannot resume from {path} ({why}); delete it to start again")
