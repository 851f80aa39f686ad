"""Print the source tree for the README: one phrase a file, from its docstring's first sentence.

python scripts/readme_tree.py --write    puts it between the README's markers
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree -->\n", "<!-- /tree -->"
FOLDERS = (
    "dit_accel",
    "dit_accel/layout",
    "dit_accel/methods",
    "dit_accel/evaluate",
    "dit_accel/metrics",
    "dit_accel/video",
    "dit_accel/report",
    "dit_accel/cli",
    "pipelines",
    "scripts",
)


def phrase(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = text.split("\n\n")[0].replace("\n", " ").split(". ")[0]
    return first.rstrip(".")


def tree() -> str:
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder}/")
        for path in sorted((ROOT / folder).glob("*.py")):
            if said := phrase(path):
                lines.append(f"  {path.name:<21} {said}")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def in_readme() -> str:
    text = (ROOT / "README.md").read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)]


def main() -> None:
    if "--write" in sys.argv:
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(before + BEGIN + tree() + END + rest.split(END)[1])
    else:
        print(tree())


if __name__ == "__main__":
    main()
