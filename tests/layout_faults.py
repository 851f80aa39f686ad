"""A valid layout document, and every way in which it can be wrong."""

from __future__ import annotations


def document() -> dict:
    """Two shots, two subjects, one reference: valid; each test breaks one thing."""
    return {
        "version": 1,
        "negative_prompt": "blurry",
        "subjects": [{"id": "hero", "prompt": "a red star"}],
        "shots": [
            {
                "id": "first",
                "prompt": "a red star and a blue ring",
                "subjects": [
                    {"id": "hero", "keyframes": [{"at": 0, "box": [0, 0.1, 0.4, 0.9]},
                                                 {"at": 0.5, "box": [0.2, 0.1, 0.6, 0.9]},
                                                 {"at": 1, "box": [0.4, 0.1, 0.8, 0.9]}]},
                    {"id": "ring", "prompt": "a blue ring", "box": [0.6, 0, 1, 1], "z": -1},
                ],
            },
            {
                "id": "second",
                "prompt": "a small red star",
                "subjects": [
                    {"id": "hero", "box": [0.7, 0.7, 0.9, 0.9], "reference": {"shot": "first"}}
                ],
            },
        ],
    }  # fmt: skip


def _set(path: str, value: object):
    """A change of the document: `shots.0.id` becomes `value`; `...` takes the key away."""

    def change(found: dict) -> None:
        *way, last = path.split(".")
        for key in way:
            found = found[int(key)] if isinstance(found, list) else found[key]
        last = int(last) if isinstance(found, list) else last
        if value is ...:
            del found[last]
        else:
            found[last] = value

    return change


HERO = "shots.0.subjects.0"

FAULTS = {
    "no mapping": (lambda d: d.clear(), "version is missing"),
    "other version": (_set("version", 2), "version is 2; accepted: 1"),
    "version is a number with a point": (_set("version", 1.0), "version is 1.0; accepted: 1"),
    "version is a truth value": (_set("version", True), "version is True; accepted: 1"),
    "unknown key": (_set("shot", []), "has the key 'shot'; accepted: version, negative_prompt, "),
    "unknown key deep inside": (
        _set(f"{HERO}.keyframes.1.bx", 1),
        "shots[0].subjects[0].keyframes[1] has the key 'bx'; accepted: at, box",
    ),
    "no shots": (_set("shots", []), "shots has 0 entries; accepted: 1 to 32"),
    "shots no list": (_set("shots", {"a": 1}), "shots is a mapping of 1 keys; accepted: a list"),
    "shot no mapping": (_set("shots.0", "x"), "shots[0] is 'x'; accepted: a mapping with id, "),
    "no prompt": (_set("shots.1.prompt", ...), "shots[1].prompt is missing"),
    "blank prompt": (_set("shots.1.prompt", " "), "shots[1].prompt is ' '; accepted: text that"),
    "prompt of a wrong type": (_set("shots.1.prompt", 3), "shots[1].prompt is 3; accepted: text"),
    "control character": (
        _set("shots.1.prompt", "a\x1b[2J"),
        "shots[1].prompt is 'a\\x1b[2J'; accepted: text without control characters",
    ),
    "lone surrogate": (_set("shots.1.prompt", "\ud800"), "shots[1].prompt is '\\ud800'; accepted"),
    "long prompt": (_set("negative_prompt", "x" * 10_001), "negative_prompt has 10001 characters"),
    "id that is a path": (
        _set("shots.1.id", "../x"),
        "shots[1].id is '../x'; accepted: 1 to 64 letters, digits, _ and -, a",
    ),
    "shots of one id": (
        _set("shots.1.id", "first"),
        "shots[1].id is 'first', like shots[0].id; accepted: an id that no other has",
    ),
    "subjects of one id": (
        _set("shots.0.subjects.1.id", "hero"),
        "shots[0].subjects[1].id is 'hero', like subjects[0].id; accepted: an id that no other has",
    ),
    "cast of one id": (
        lambda d: d["subjects"].append({"id": "hero", "prompt": "another"}),
        "subjects[1].id is 'hero', like subjects[0].id",
    ),
    "cast that is placed nowhere": (
        lambda d: d["subjects"].append({"id": "ghost", "prompt": "a ghost"}),
        "subjects[1].id is 'ghost', which is in no shot",
    ),
    "subject without a prompt": (
        _set("subjects", ...),
        "shots[0].subjects[0].prompt is missing; accepted: a text here, or in the list of subjects "
        "at the top",
    ),
    "no box": (
        _set("shots.0.subjects.1.box", ...),
        "shots[0].subjects[1] names neither of keyframes and mask",
    ),
    "box and keyframes": (
        _set(f"{HERO}.box", [0, 0, 1, 1]),
        "shots[0].subjects[0].box is given beside keyframes",
    ),
    "box outside": (
        _set(f"{HERO}.keyframes.2.box", [0, 0, 1.2, 1]),
        "shots[0].subjects[0].keyframes[2].box is [0, 0, 1.2, 1]; accepted: [x0, y0, x1, y1] with",
    ),
    "box below 0": (
        _set("shots.1.subjects.0.box", [-0.1, 0, 1, 1]),
        "shots[1].subjects[0].box is [-0.1, 0, 1, 1]; accepted:",
    ),
    "empty box": (
        _set(f"{HERO}.keyframes.2.box", [0.5, 0, 0.5, 1]),
        "shots[0].subjects[0].keyframes[2].box is [0.5, 0, 0.5, 1]; accepted: [x0, y0, x1, y1] "
        "with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; this one is empty",
    ),
    "box of three": (_set(f"{HERO}.keyframes.2.box", [0, 0, 1]), "box is [0, 0, 1]; accepted"),
    "box of words": (_set(f"{HERO}.keyframes.2.box", [0, 0, 1, "1"]), "box is [0, 0, 1, '1']"),
    "box of truth values": (_set(f"{HERO}.keyframes.2.box", [0, 0, 1, True]), "box is [0, 0, 1, T"),
    "keyframes out of order": (
        _set(f"{HERO}.keyframes.2.at", 0.25),
        "shots[0].subjects[0].keyframes[2].at is 0.25; accepted: above 0.5, the keyframe before it",
    ),
    "keyframes at one time": (
        _set(f"{HERO}.keyframes.1.at", 0),
        "shots[0].subjects[0].keyframes[1].at is 0.0; accepted: above 0",
    ),
    "time outside": (
        _set(f"{HERO}.keyframes.2.at", 2),
        "shots[0].subjects[0].keyframes[2].at is 2; accepted: a number from 0 to 1",
    ),
    "no keyframes": (
        _set(f"{HERO}.keyframes", []),
        "shots[0].subjects[0].keyframes has 0 entries; accepted: 1 to 1024",
    ),
    "z with a point": (_set(f"{HERO}.z", 0.5), "shots[0].subjects[0].z is 0.5; accepted: an int"),
    "huge z": (_set(f"{HERO}.z", 10**80), "z is a whole number of many digits; accepted: an int"),
    "mask that is not there": (
        lambda d: (_set(f"{HERO}.keyframes", ...)(d), _set(f"{HERO}.mask", "no.mkv")(d)),
        "shots[0].subjects[0].mask is 'no.mkv'; there is no such file",
    ),
    "mask of another kind": (
        _set(f"{HERO}.mask", "no.txt"),
        "shots[0].subjects[0].mask is 'no.txt'; accepted: a file that ends in .mp4",
    ),
    "reference to nothing": (
        _set("shots.1.subjects.0.reference", {}),
        "shots[1].subjects[0].reference names neither of shot and file; accepted: one of them",
    ),
    "reference to a shot that is not there": (
        _set("shots.1.subjects.0.reference.shot", "third"),
        "shots[1].subjects[0].reference.shot is 'third'; accepted: first, second",
    ),
    "reference to a subject that is not there": (
        _set("shots.1.subjects.0.reference.subject", "villain"),
        "shots[1].subjects[0].reference.subject is 'villain'; accepted: hero, ring",
    ),
    "reference to a file that is not there": (
        _set("shots.1.subjects.0.reference", {"file": "no.png"}),
        "shots[1].subjects[0].reference.file is 'no.png'; there is no such file",
    ),
    "reference to a shot with boxes": (
        _set("shots.1.subjects.0.reference.box", [0, 0, 1, 1]),
        "shots[1].subjects[0].reference.keyframes is given with a shot, which has its own",
    ),
    "reference to itself": (
        _set("shots.1.subjects.0.reference.shot", "second"),
        "shots[1].subjects[0].reference.shot closes a circle: second -> second",
    ),
    "references that form a circle": (
        _set(f"{HERO}.reference", {"shot": "second"}),
        "shots[0].subjects[0].reference.shot closes a circle: first -> second -> first",
    ),
    "path out of the folder": (
        _set("shots.1.subjects.0.reference", {"file": "../../etc/x.png"}),
        "reference.file is '../../etc/x.png'; accepted: a file inside the layout's folder",
    ),
    "path from the root": (
        _set("shots.1.subjects.0.reference", {"file": "/etc/x.png"}),
        "reference.file is '/etc/x.png'; accepted: a file inside the layout's folder",
    ),
    "path that is too long": (
        _set("shots.1.subjects.0.reference", {"file": "x" * 5000 + ".png"}),
        "shots[1].subjects[0].reference.file is 'xxx",
    ),
    "path with a null": (
        _set("shots.1.subjects.0.reference", {"file": "x\0.png"}),
        "reference.file is 'x\\x00.png'; accepted: text without control characters",
    ),
    "too many shots": (
        lambda d: d["shots"].extend([d["shots"][1]] * 40),
        "shots has 42 entries; accepted: 1 to 32",
    ),
    "too many keyframes": (
        _set(f"{HERO}.keyframes", [{"at": i / 2000, "box": [0, 0, 1, 1]} for i in range(1025)]),
        "shots[0].subjects[0].keyframes has 1025 entries; accepted: 1 to 1024",
    ),
}
