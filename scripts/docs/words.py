"""Lists words that this project once used in a private sense, and names with two meanings.

In: the text of the package, `pipelines/`, `tests/`, `scripts/` and the pages; not `research/`.
Out: hits by room, or one by one with `--list`; exit code 1 if one is not explained.
Knows: the words of `WORDS`, alone, in snake_case and in CamelCase, also across line ends. Does
not know what a sentence means: `ALLOWED` explains the hits that remain.
Source: ours. `tests/docs/test_words.py` runs it.

    python scripts/docs/words.py [--list] [PATH ...]
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = ("dit_accel", "pipelines", "tests", "scripts", "docs", "README.md", "assets/README.md")
ENDINGS = {".py", ".md", ".j2", ".js", ".css", ".json", ".sh", ".toml"}
ITSELF = ("scripts/docs/words.py", "tests/docs/test_words.py")

# Forms, separated by blanks, and their replacement. `_` in a form is any white space.
WORDS = {
    "told tell tells telling": "reports, says, is given, on_progress",
    "served serve serves serving": "cached, reused or extrapolated; applies to",
    "kept": "cached, stored",
    "held": "stored; GPU memory",
    "foretold foretell foretells": "predicted, estimated",
    "promised promise promises promising": "guaranteed, guarantee",
    "twin twins": "uncached reference",
    "hindsight": "oracle",
    "surprise surprises surprised": "extrapolation error",
    "rung rungs ladder ladders": "candidate plan, candidates",
    "harm harms harmful harmless": "expected error",
    "lean leans leaning leant": "damped extrapolation, damping",
    "course courses": "policy, plan",
    "pilot pilots piloted autopilot": "controller, policy",
    "steer steers steered steering": "guard, guarded policy",
    "hear hears heard": "on_output, is given, receives",
    "mend mends mended mending": "on_lost_value, restore",
    "certainty doubts doubted doubting": "on_suspicious, distrust",
    "trip trips tripped tripping": "on_invalid",
    "shelf shelves": "branch store",
    "follower followers": "plan executor",
    "what_is_left": "residual error",
    "carried_over carry_over carries_over": "transferred",
    "on_the_way": "during the run",
    "careful carefully": "conservative variant (deleted)",
    "honest honestly": "held-out",
    "with_words": "with a note",
}
DETERMINERS = "a an the one each every both this that other another two no its his accelerated"
PATTERNS = {  # for words that alone are not enough
    rf"\b(?:{DETERMINERS.replace(' ', '|')})\s+takes?\b(?! \w+s? place)": "take: generation, clip",
    r"\btake(?=\.[a-z]|[:=,)\]]| =)|(?<=[a-z]_)takes?\b|\bclip_takes?\b": "take: generation, clip",
    r"\bhost reads?\b|\bdevice_reads?\b|\breads? of the device\b": "read: host sync",
}

# Old identifiers that are gone, and their successors.
NAMES = {
    "Autopilot": "RunController",
    "Steering": "GuardedPolicy",
    "Course": "Policy",
    "PlanCourse": "PlanPolicy",
    "EveryStep": "ComputeAll",
    "Follower": "PlanExecutor",
    "Watch": "Monitor",
    "Losses": "LostValues",
    "Shelf": "BranchStore",
    "PrunedCache": "UniCPCache",
    "Forecast": "Extrapolation",
    "Rung": "CandidatePlan",
    "Outlook": "QualityDistribution",
    "Decision": "PlanChoice",
    "Slack": "QualityMargin",
    "Identity": "ProfileKey",
    "Lanes": "ImpulseResponse",
    "Take": "Generation",
    "LoopClock": "LoopTimer",
    "Staged": "StagedAttnProcessor",
    "Slicer": "LowRankAttention",
    "Pruner": "BlockSparseAttention",
    "Foretold": "SceneCost",
    "Aim": "RunTarget",
    "Scenery": "LayoutOptions",
    "Planned": "PlanRequest",
    "Arranged": "MemoryUse",
    "hear_text": "start(run)",
    "hear_latents": "start(run)",
    "hear_start": "start(run)",
    "forecast_of": "extrapolation_at",
    "heard_text": "start(run)",
    "heard_latents": "start(run)",
    "heard_start": "start(run)",
    "carried": "transferred",
    "acts_at": "active_at_step",
    "acts_in": "active_in_layer",
    "fewest_bits": "min_bits",
    "device_reads": "host_syncs",
    "look_into": "inspect_folder",
    "window_pays": "window_sums",
    "at_least": "clopper_pearson_lower",
    "twin": "uncached reference",
    "rungs": "candidates",
    "Told": "ProgressCallback",
}

# (files, accepted text, why). The text is a pattern; a hit inside it is explained.
ALLOWED = [
    ("*", r"of course", "everyday English"),
    ("*", r"held[- ]out", "the field's word for data that a fit has not seen"),
    ("*", r"(?:tells?|told) (?:\w+ ){0,4}(?:apart|from)", "to tell apart: everyday English"),
    ("*", r"round[- ]trips?", "the field's word: out and back again"),
    ("*", r"flops[_ ]kept", "a public name of the report: share of FLOPs that were computed"),
    ("*", r"kept[_\s]+(?:key )?blocks?", "sparse attention: the key blocks that stay"),
    ("*", r"\.tell\(\)", "Python's file position"),
    ("*tail.py", r"\bpilots?\b", "the field's word for a small trial run before the real one"),
    ("*.js", r"\bPromise\b", "JavaScript's class"),
    ("*.md", r"also take:", "a verb"),
    ("*planning/*profile.py", r"\b(?:surprise|rungs|careful)\b", "the profile's file format"),
    ("*planning/candidate.py", r"\bsurprise\b", "a tensor's name in the profile's file"),
]


@dataclass(frozen=True)
class Hit:
    """A word in a file. `why` says why it is accepted; None if nothing explains it."""

    path: str
    line: int
    word: str
    instead: str
    text: str
    why: str | None = None

    @property
    def room(self) -> str:
        """The folder that the hit counts for: a package of `dit_accel`, or one beside it."""
        parts = Path(self.path).parts
        return "/".join(parts[:2]) if len(parts) > 2 or parts[0] == "dit_accel" else parts[0]


def readable(text: str) -> str:
    """The text in lower case with the words of identifiers apart; lines stay where they are.

    Example:
        >>> readable("self._keptValue = TookTAKE_two")
        'self. kept value = took take two'
    """
    apart = re.sub(
        r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text.replace("FLOPs", "Flops")
    )
    return apart.replace("_", " ").lower()


def _pattern(forms: str) -> str:
    alternatives = (form.replace("_", r"[\s#*]+") for form in forms.split())
    return rf"\b(?:{'|'.join(alternatives)})\b"


def hits_in(path: str, text: str) -> Iterator[Hit]:
    """The hits of one file, explained or not.

    Example:
        >>> [(hit.line, hit.word) for hit in hits_in("a.py", "x = 1\\ny = KeptTwin()")]
        [(2, 'kept'), (2, 'twin')]
    """
    words, lines = readable(text), text.splitlines()
    patterns = [(_pattern(forms), words, instead) for forms, instead in WORDS.items()]
    patterns += [(pattern, text, instead) for pattern, instead in PATTERNS.items()]
    found = [
        (source, match, instead)
        for pattern, source, instead in patterns
        for match in re.finditer(pattern, source)
    ]
    reasons = {
        id(source): [
            (match.span(), why)
            for files, pattern, why in ALLOWED
            if fnmatch(path, files)
            for match in re.finditer(pattern, source, re.IGNORECASE)
        ]
        for source in (words, text)
    }
    for source, match, instead in sorted(found, key=lambda one: one[1].start()):
        line = source.count("\n", 0, match.start())
        spans = reasons[id(source)]
        why = next((y for (a, b), y in spans if a <= match.start() and match.end() <= b), None)
        word = " ".join(match.group().split())
        yield Hit(path, line + 1, word, instead, lines[line].strip(), why)


def old_names(path: str, text: str) -> Iterator[Hit]:
    """Definitions in one Python file with names that should be gone."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if name.lstrip("_") in NAMES:
            instead = NAMES[name.lstrip("_")]
            yield Hit(path, node.lineno, name, instead, lines[node.lineno - 1].strip())


def texts(paths: Iterable[str] = SEARCHED) -> dict[str, str]:
    """The searched files by path from the root, and what is in them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    names = [x for x in listed if Path(x).suffix in ENDINGS and x not in ITSELF]
    data = ("assets/mini-wan", "assets/prompts")
    return {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in sorted(names)
        if (ROOT / name).is_file() and not name.startswith(data)
    }


def all_hits(files: dict[str, str]) -> list[Hit]:
    """All hits: of words everywhere, and of names in the package."""
    hits = [hit for path, text in files.items() for hit in hits_in(path, text)]
    ours = {p: t for p, t in files.items() if p.startswith("dit_accel/") and p.endswith(".py")}
    return hits + [hit for path, text in ours.items() for hit in old_names(path, text)]


def classes_of_one_name(files: dict[str, str]) -> dict[str, list[str]]:
    """Names of classes that several modules of the package define, and these modules."""
    homes = defaultdict(list)
    for path, tree in _package(files):
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(path)
    return {name: where for name, where in homes.items() if len(where) > 1}


def constants_of_two_values(files: dict[str, str]) -> dict[str, list[str]]:
    """Public constants with different values in several modules of the package, and these
    modules."""
    homes: dict[str, dict[str, str]] = defaultdict(dict)
    for path, tree in _package(files):
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target, value in _pairs(targets[0], node.value):
                if re.fullmatch(r"[A-Z][A-Z0-9_]*", target):
                    homes[target][path] = value
    return {name: sorted(found) for name, found in homes.items() if len(set(found.values())) > 1}


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, str]]:
    if isinstance(target, ast.Name):
        yield target.id, ast.unparse(value)
    elif isinstance(target, ast.Tuple):
        whole = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
        for one, part in zip(target.elts, whole, strict=False):
            yield from _pairs(one, part)


def _package(files: dict[str, str]) -> Iterator[tuple[str, ast.Module]]:
    for path, text in files.items():
        if path.startswith(("dit_accel/", "pipelines/")) and path.endswith(".py"):
            yield path, ast.parse(text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("paths", nargs="*", default=SEARCHED, help="files or folders")
    parser.add_argument("--list", action="store_true", help="every hit that is not explained")
    args = parser.parse_args()
    files = texts(args.paths)
    hits = all_hits(files)
    open_hits = [hit for hit in hits if hit.why is None]
    for hit in open_hits if args.list else ():
        print(f"{hit.path}:{hit.line}: {hit.word} ({hit.instead}): {hit.text}")
    for room, count in Counter(hit.room for hit in open_hits).most_common():
        words = Counter(hit.word for hit in open_hits if hit.room == room).most_common(6)
        print(f"{count:5} {room:24} " + ", ".join(f"{word} {n}" for word, n in words))
    twofold = classes_of_one_name(files) | constants_of_two_values(files)
    for name, where in twofold.items():
        print(f"two meanings of {name}: {', '.join(where)}")
    print(f"{len(open_hits)} not explained, {len(hits) - len(open_hits)} explained")
    return 1 if open_hits or twofold else 0


if __name__ == "__main__":
    sys.exit(main())
