import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import methods_table  # noqa: E402
from readme_tree import in_readme, tree  # noqa: E402


def test_tree_is_what_the_docstrings_say():
    assert in_readme() == tree(), "run: python scripts/readme_tree.py --write"


def test_the_methods_page_is_what_the_table_says():
    assert methods_table.in_page() == methods_table.table(), (
        "run: python scripts/methods_table.py --write"
    )


def test_links_and_scripts_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"(scripts/\w+\.\w+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    assert named and not missing
