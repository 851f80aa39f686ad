"""Adds reference files as rows of the batch after the user's, and cuts them off the output.

Frames and prompts come in; a forward's arguments get more rows, and its output loses them. A clip
is encoded once per call with the pipeline's VAE. At every step its clean latents get noise of the
same level as the user's rows, from a private generator, constant over a run: (1 - sigma) clean +
sigma noise. It knows flow matching only, and not who reads the rows (`scenes/isolation.py`).
Source: IR-Diffusion (arXiv 2411.19261) makes its references in the same batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from dit_accel.core.patching import Patches
from dit_accel.core.session import Session
from dit_accel.scenes.subject_text import SubjectPrompts

NAMES = ("hidden_states", "timestep", "encoder_hidden_states")
# so that a reference does not get the noise of the user's clip if seeds are equal
SEED_OFFSET = 15_485_863


class ReferenceClips:
    """The frames of reference files, their latents and their noise.

    Args:
        frames: one clip per file, `(T, H, W, 3)` in [0, 1], of any length and size (an image has
            T = 1); resized and resampled to the user's clips.
        texts: the prompt of each; None: that of the first row is used.
        seed: the seed of the noise.
        first: number of the user's rows, which come before these.
    """

    def __init__(
        self, frames: Sequence[torch.Tensor], texts: Sequence[str | None], seed: int, first: int
    ) -> None:
        self.frames, self.texts, self.seed, self.first = frames, texts, seed, first
        self.clear()

    def __len__(self) -> int:
        return len(self.frames)

    def clear(self) -> None:
        """Free all tensors."""
        self.clean: torch.Tensor | None = None
        self.noise: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of latents and noise."""
        return sum(x.nbytes for x in (self.clean, self.noise) if x is not None)

    def install(self, patches: Patches, pipe: Any) -> None:
        """Patch `prepare_latents`, to encode the files there.

        Raises:
            ValueError: the scheduler does not use flow matching.
        """
        if not self.frames:
            return
        config = pipe.scheduler.config
        name = type(pipe.scheduler).__name__
        if "Flow" not in name and not config.get("use_flow_sigmas", False):
            accepted = "accepted with files as references: flow matching"
            raise ValueError(f"scheduler is {name}; {accepted}")
        patches.wrap(pipe, "prepare_latents", partial(self._wrap, pipe))

    def _wrap(self, pipe: Any, inner: Any) -> Any:
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            latents = inner(*args, **kwargs)
            self._encode(pipe, latents)
            return latents

        return prepare_latents

    @torch.no_grad()
    def _encode(self, pipe: Any, like: torch.Tensor) -> None:
        """Set the clips' latents, with the size of the user's latents, and their noise."""
        vae = pipe.vae
        frames = (like.shape[2] - 1) * pipe.vae_scale_factor_temporal + 1
        size = [side * pipe.vae_scale_factor_spatial for side in like.shape[3:]]
        clips = torch.stack([fitted(clip, frames, size) for clip in self.frames])
        pixels = (clips * 2 - 1).to(like.device, vae.dtype)
        mean, deviation = (
            torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1).to(like.device, torch.float32)
            for name in ("latents_mean", "latents_std")
        )
        coded = torch.cat([vae.encode(one[None]).latent_dist.mode() for one in pixels])
        self.clean = (coded.float() - mean) / deviation
        generator = torch.Generator().manual_seed(self.seed + SEED_OFFSET)
        self.noise = torch.randn(self.clean.shape, generator=generator).to(like.device)

    def extend(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], session: Session, texts: SubjectPrompts
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward's arguments with these rows after the user's rows.

        Raises:
            RuntimeError: the clips are not encoded, because the pipeline was not called.
        """
        if not self.frames:
            return args, kwargs
        if self.clean is None or self.noise is None:
            raise RuntimeError("references that are files are encoded in the pipeline's own call")
        given = dict(zip(NAMES, args, strict=False)) | kwargs
        latents, timestep, text = (given[name] for name in NAMES)
        sigma = session.time / session.pipe.scheduler.config.num_train_timesteps
        noised = ((1 - sigma) * self.clean + sigma * self.noise).to(latents.dtype)
        rows = [text[:1]] * len(self)
        if session.branch == "cond":
            own = (texts.encoded.get((self.first + i, 1)) for i in range(len(self)))
            rows = [_text_row(one, text) for one in own]
        given |= {
            "hidden_states": torch.cat([latents, noised]),
            "timestep": torch.cat([timestep, timestep[:1].expand(len(self), *timestep.shape[1:])]),
            "encoder_hidden_states": torch.cat([text, *rows]),
        }
        return args[len(NAMES) :], given

    def cut(self, output: Any, rows: int) -> Any:
        """A forward's output without these rows."""
        if not self.frames:
            return output
        user = output[0][:rows]
        return (user,) if isinstance(output, tuple) else type(output)(user)


def _text_row(one: torch.Tensor | None, text: torch.Tensor) -> torch.Tensor:
    """The text of a file; that of the first row if the file has none, or if its length differs."""
    return text[:1] if one is None or one.shape[1:] != text.shape[1:] else one.to(text)


def fitted(clip: torch.Tensor, frames: int, size: Sequence[int]) -> torch.Tensor:
    """A clip `(T, H, W, 3)` resized and resampled (nearest frame): `(3, frames, *size)`."""
    pace = (len(clip) - 1) / max(frames - 1, 1)
    chosen = clip[[round(i * pace) for i in range(frames)]].permute(0, 3, 1, 2).float()
    if tuple(chosen.shape[2:]) != tuple(size):
        chosen = F.interpolate(
            chosen, size=tuple(size), mode="bilinear", antialias=True, align_corners=False
        )
    return chosen.clamp(0, 1).transpose(0, 1)
