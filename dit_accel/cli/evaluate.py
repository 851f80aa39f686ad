"""`dit-accel evaluate`: runs many prompts with many methods, and scores them.

In: prompts, methods and metrics. Out: a folder of results, which can be continued, and a table.
Knows the order of the work; `evaluation/` does the work. Ours.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from dit_accel.cli import evaluate_request as request
from dit_accel.cli.common.errors import RESUMABLE, BadInput, RunFailed, refused, say
from dit_accel.cli.common.files import print_json
from dit_accel.cli.common.options import bytes_of
from dit_accel.cli.common.text import counted, print_table
from dit_accel.cli.common.verb import verb
from dit_accel.cli.evaluate_request import EvaluateOptions
from dit_accel.cli.ranking_table import check_ranking, ranking_markdown, ranking_table
from dit_accel.cli.run.request import check_clip
from dit_accel.core.files import reason_of

if TYPE_CHECKING:
    from dit_accel.evaluation.jobs import EvaluationSpec
    from dit_accel.evaluation.store import Store
    from dit_accel.models.folder import LoadableModel


@verb(EvaluateOptions, interrupted=RESUMABLE)
def evaluate(given: EvaluateOptions) -> None:
    """Compare methods with the uncached model, prompt by prompt.

    You may interrupt it at any time: the same command continues.
    Without a profile, quality and speedup are planned from a prior and earlier clips.
    """
    check_clip(given)
    bytes_of(given.cache_memory)
    if given.backend not in ("local", "ray"):
        raise BadInput(f"--backend is {given.backend!r}; accepted: local or ray")
    if given.backend == "ray" and importlib.util.find_spec("ray") is None:
        raise BadInput("--backend is 'ray', which is not installed: pip install 'dit-accel[ray]'")
    if given.workers is not None and given.backend != "ray":
        raise BadInput(
            f"--workers is {given.workers}; accepted: with --backend ray. Without Ray, start this "
            "command once for each worker"
        )
    from dit_accel.cli.run.settings import locate
    from dit_accel.evaluation.worker import rescore
    from dit_accel.models.loading import quiet_libraries

    with _as_command_errors(), quiet_libraries(verbose=given.verbose):
        model, device, dtype = locate(given)
        device = request.own_device(device)
        spec = request.spec_of(given, model, device, dtype)
        sources = request.sources_of(given, spec, model, device)
        store, spec = request.opened(given, spec, sources)
        if given.ranking:
            check_ranking(spec)
        if given.retry_failed:
            _forget_failed(store, spec)
        _work(store, spec, model, device, given)
        scored = rescore(store, spec, again=given.rescore)
        if scored and not given.as_json:
            say(f"{scored} clips scored again", kind="note")
        if given.ranking:
            _rank(store, spec, quiet=given.as_json)
        _show(store, spec, given)


def _forget_failed(store: Store, spec: EvaluationSpec) -> None:
    from dit_accel.evaluation.results import FAILED

    for job in spec.jobs():
        result = store.result(job.id)
        if result is not None and result["status"] == FAILED:
            store.forget(job.id)


def _work(
    store: Store, spec: EvaluationSpec, model: LoadableModel, device: str, given: EvaluateOptions
) -> None:
    from dit_accel.cli.common.progress import clips_bar
    from dit_accel.evaluation import worker

    jobs = spec.jobs()
    done = sum(store.done(job.id) for job in jobs)
    if done and not given.as_json:
        say(f"{done} of {len(jobs)} clips are there already", kind="note")
    with clips_bar(len(jobs), done, quiet=given.as_json) as advance:
        if given.backend == "ray":
            groups = [g for g in spec.groups() if not all(store.done(job.id) for job in g)]
            worker.work_with_ray(
                store, spec, str(model.folder), groups, given.workers or 1,
                on_group=lambda count: advance(count, ""),
            )  # fmt: skip
        else:
            worker.work(
                store, spec, str(model.folder), device,
                on_result=lambda job, result: advance(1, f"{job.method.label} {job.prompt_id}"),
            )  # fmt: skip


def _rank(store: Store, spec: EvaluationSpec, *, quiet: bool) -> None:
    from dit_accel.cli.common.progress import clips_bar
    from dit_accel.evaluation.ranking.scores import score_seeds

    made = sum(store.done(job.id) for job in spec.jobs())
    with clips_bar(made, 0, quiet=quiet) as advance:
        score_seeds(store, spec, on_clip=lambda job: advance(1, "ranking seeds"))


def _show(store: Store, spec: EvaluationSpec, given: EvaluateOptions) -> None:
    from dit_accel.cli.common.tables import markdown_table, summary_table
    from dit_accel.evaluation.ranking.scores import read_scores
    from dit_accel.evaluation.ranking.table import ranking
    from dit_accel.evaluation.results import FAILED
    from dit_accel.evaluation.summary import summarise

    results = store.results(spec)
    summary = summarise(results)
    rows = ranking(results, read_scores(store, spec)) if given.ranking else ()
    content = summary.to_dict() | ({"ranking": [row.to_dict() for row in rows]} if rows else {})
    store.write_summary(content, markdown_table(summary, spec.metrics) + ranking_markdown(rows))
    failed = sum(row.status[FAILED] for row in summary.rows)
    if given.as_json:
        print_json(content)
    else:
        print_table(summary_table(summary, spec.metrics))
        if rows:
            print_table(ranking_table(rows))
        typer.echo(f"{summary.done} of {summary.jobs} clips done, in {store.folder}")
        if 0 < failed < summary.jobs:
            say(f"{counted(failed, 'clip')} failed; --retry-failed tries again", kind="note")
    if failed and failed == summary.jobs:
        first = next((error for row in summary.rows for error in row.errors), "")
        raise RunFailed(f"all {failed} clips failed (--retry-failed tries again): {first}")


@contextlib.contextmanager
def _as_command_errors() -> Iterator[None]:
    """Turn errors of the evaluation into errors of a command."""
    from dit_accel.evaluation.runner import ChildFailed
    from dit_accel.evaluation.store import StoreError

    try:
        with refused("--output: ", (StoreError,)), refused():
            yield
    except ChildFailed as error:
        raise RunFailed(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunFailed(f"{where}{reason_of(error)}; what is done is saved") from error
