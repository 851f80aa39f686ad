"""Makes a pipeline from the name of a model: finds its folder, and loads it.

In: a local folder, a hub id, or None for the miniature. Out: a pipeline of diffusers.
Knows: `folder.py` checks a folder before any weights are loaded. A hub id is read
from the local cache if it is complete there, else downloaded. Without network, this fails within
seconds, not after a minute of retries. Errors name the argument `model` or `device`.
Source: ours.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_accel.models import miniature
from dit_accel.models.folder import (
    LoadableModel,
    ModelError,
    ModelLoadError,
    check_family,
    inspect_folder,
    missing_configs,
    missing_parts,
    read_index,
    with_variant,
)

REACH_SECONDS = 5.0
CONFIG_FILES = ["model_index.json", "*/config.json", "*/*_config.json", "generation_defaults.json"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Version:
    """The version of a model's weights: for the hub a branch, tag or commit; for a folder the
    variant, which is part of the file names."""

    revision: str | None = None
    variant: str | None = None


def resolve_model(
    model: str | None, *, whole: bool = True, version: Version | None = None
) -> LoadableModel:
    """Find the folder of a model. Download it if necessary.

    Args:
        model: a folder, a hub id, or None for the embedded miniature.
        whole: False if its configuration files are enough; nothing else is downloaded then.
        version: None: the main branch, and the files without a variant.

    Raises:
        ModelError: it is neither a folder nor a hub id, or not a diffusers folder of a supported
            family.
        ModelLoadError: a hub id is not in the cache and cannot be downloaded.
    """
    version = version or Version()
    folder = Path(model or "").expanduser()
    try:
        folder.exists()
    except OSError as error:  # for a name that is too long
        raise ModelError(f"model is {model!r:.80}: {error.strerror}") from error
    if version.revision is not None and (model is None or folder.exists()):
        raise ModelError(
            f"revision is {version.revision!r}; accepted: with a hub id, but model is "
            f"{'the miniature' if model is None else f'the folder {model!r}'}"
        )
    if model is None:
        return with_variant(_embedded(), version.variant)
    if folder.is_dir():
        return with_variant(inspect_folder(folder, name=model, whole=whole), version.variant)
    if folder.exists():
        raise ModelError(f"model is {model!r}, a file; accepted: a folder with a model_index.json")
    if model.startswith((".", "~")) or not _HUB_ID.fullmatch(model):
        raise ModelError(
            f"model is {model!r}: no such folder, and no hub id of the form owner/name"
        )
    return with_variant(_from_hub(model, whole, version), version.variant)


def load(model: LoadableModel, *, device: str, dtype: str) -> Any:
    """Load the pipeline onto its device; see `read`."""
    return read(model, dtype=dtype, place=lambda pipe: pipe.to(device))


def read(model: LoadableModel, *, dtype: str, place: Callable[[Any], object], **more: Any) -> Any:
    """Load the pipeline; the VAE stays in float32, as its authors advise.

    Args:
        place: moves the loaded pipeline to its device.
        more: arguments of `from_pretrained`.

    Raises:
        ModelLoadError: diffusers cannot load it.
    """
    import diffusers
    import torch

    # the class of the index, which may differ from that of the folder
    loader: Any = getattr(diffusers, str(model.index["_class_name"]), diffusers.DiffusionPipeline)
    kinds = {"default": getattr(torch, dtype), "vae": torch.float32}
    try:
        # from 0.42 on the argument is `dtype`, which older versions do not know
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            pipe = loader.from_pretrained(
                str(model.folder), torch_dtype=kinds, local_files_only=True,
                variant=model.variant, **more,
            )  # fmt: skip
        _check_weights(model, pipe)
        place(pipe)
    except (MemoryError, torch.OutOfMemoryError, ModelLoadError):
        raise
    except Exception as error:  # for a damaged file, diffusers may raise any error
        first = str(error).strip() or type(error).__name__
        raise ModelLoadError(
            f"model is {model.name!r}, which diffusers cannot load: {first}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_weights(model: LoadableModel, pipe: Any) -> None:
    """Refuse a pipeline whose files lack weights: diffusers leaves those parameters without data.

    Raises:
        ModelLoadError: a part lacks weights. The message names the part and one of them.
    """
    for part, module in pipe.components.items():
        named = [*module.named_parameters()] if hasattr(module, "named_parameters") else []
        lacking = [name for name, tensor in named if tensor.device.type == "meta"]
        if lacking:
            raise ModelLoadError(
                f"model is {model.name!r}: the files of its {part} lack {len(lacking)} of "
                f"{len(named)} weights, such as {lacking[0]}"
            )


def choose_device(device: str | None) -> str:
    """The device to run on: the given one, else CUDA if there is any, else CPU.

    Raises:
        ModelError: the device is unknown, or this machine does not have it.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["cpu"] + [f"cuda:{index}" for index in range(count)]
    if torch.backends.mps.is_available():
        present.append("mps")
    if device is None:
        return "cuda" if count else "cpu"
    if device not in present and not (device == "cuda" and count):
        raise ModelError(f"device is {device!r}: this machine has {', '.join(present)}")
    return device


def choose_dtype(dtype: str | None, device: str) -> str:
    """The dtype to compute in: bfloat16 if the CUDA device supports it, else float32."""
    import torch

    able = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return dtype or ("bfloat16" if able else "float32")


@contextlib.contextmanager
def quiet_libraries(*, verbose: bool) -> Iterator[None]:
    """Silence the warnings and loading bars of diffusers and transformers while the body runs."""
    if verbose:
        yield
        return
    loggers: list[Any] = [
        importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")
    ]
    levels = [logger.get_verbosity() for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.set_verbosity_error()
            logger.disable_progress_bar()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.set_verbosity(level)
                logger.enable_progress_bar()


def _embedded() -> LoadableModel:
    try:
        folder = miniature.path()
    except FileNotFoundError as error:
        raise ModelLoadError(f"{error}; reinstall dit-accel, or name another model") from error
    return inspect_folder(folder, name="embedded miniature")


def _from_hub(model: str, whole: bool, version: Version) -> LoadableModel:
    from huggingface_hub import constants

    cached = _cached(model, version.revision)
    if cached is not None:
        index = read_index(cached / "model_index.json", model)
        if not (missing_parts(cached, index) if whole else missing_configs(cached)):
            return inspect_folder(cached, name=model, whole=whole)
    state = "not in the local cache" if cached is None else "only partly in the local cache"
    if constants.HF_HUB_OFFLINE:
        raise ModelLoadError(_how_to_get(model, state, "HF_HUB_OFFLINE is set"))
    _check_reachable(model, state, version.revision)
    return _download(model, state, whole, version)


def _cached(model: str, revision: str | None) -> Path | None:
    """The folder of a model in the local cache, complete or not, without network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "model_index.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _check_reachable(model: str, state: str, revision: str | None) -> None:
    """Check that the hub has the model; in a thread, because DNS look-ups have no time limit."""
    from huggingface_hub import HfApi

    ends: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(model, revision=revision, timeout=REACH_SECONDS)
            ends.append(None)
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * REACH_SECONDS)
    end = ends[0] if ends else TimeoutError("no answer")
    if end is not None:
        raise _hub_error(model, state, end) from end


def _download(model: str, state: str, whole: bool, version: Version) -> LoadableModel:
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        revision = version.revision
        first = hf_hub_download(model, "model_index.json", revision=revision)
        check_family(read_index(Path(first), model), model)
        if whole:
            folder = DiffusionPipeline.download(model, revision=revision, variant=version.variant)
        else:
            folder = snapshot_download(model, revision=revision, allow_patterns=CONFIG_FILES)
    except ModelError:
        raise
    except Exception as error:
        raise _hub_error(model, state, error) from error
    return inspect_folder(Path(folder), name=model, whole=whole)


def _hub_error(model: str, state: str, error: Exception) -> ModelError | ModelLoadError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"model is {model!r}:"
    if isinstance(error, GatedRepoError):
        return ModelLoadError(f"{name} accept its terms on the hub, then `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return ModelError(f"{name} the hub has no such revision of it")
    if isinstance(error, RepositoryNotFoundError):
        return ModelError(f"{name} no such folder, and the hub has no such public model")
    if isinstance(error, EntryNotFoundError):
        return ModelError(f"{name} no diffusers model, it has no model_index.json")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = f"the hub cannot be reached ({lines[0].rstrip('.')})"
    return ModelLoadError(_how_to_get(model, state, reason))


def _how_to_get(model: str, state: str, why: str) -> str:
    return (
        f"model is {model!r}: no such folder, {state}, and {why}. "
        f"Run `hf download {model}` on a machine with network, or pass the model's folder; without "
        "a model, the embedded miniature runs and needs nothing"
    )
