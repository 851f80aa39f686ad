import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import docs_tables  # noqa: E402
from readme_tree import in_readme, tree  # noqa: E402


def test_tree_is_what_the_docstrings_say():
    assert in_readme() == tree(), "run: python scripts/readme_tree.py --write"


@pytest.mark.parametrize("name", docs_tables.TABLES)
def test_the_pages_of_the_docs_are_what_the_tables_say(name):
    assert docs_tables.in_page(name) == docs_tables.TABLES[name][1](), (
        "run: python scripts/docs_tables.py --write"
    )


def test_links_and_scripts_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"(scripts/\w+\.\w+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert named and not missing
