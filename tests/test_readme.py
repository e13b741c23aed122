"""The README agrees with the library."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


EXAMPLES = [
    (page, *groups)
    for page in ("README.md", "docs/numpy.md", "docs/choosing.md", "docs/torch.md", "docs/jax.md")
    for groups in re.findall(
        r"```python\n(.*?)```\n\n```\n(.*?)```",
        (ROOT / page).read_text(encoding="utf-8"),
        re.DOTALL,
    )
]


@pytest.mark.parametrize(("page", "code", "output"), EXAMPLES, ids=lambda each: each[:9])
def test_examples_print_the_documented_results(page, code, output):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout) == ("", output)


def test_there_are_examples():
    numbers = {
        "README.md": 1,
        "docs/numpy.md": 2,
        "docs/choosing.md": 8,
        "docs/torch.md": 1,
        "docs/jax.md": 1,
    }
    assert Counter(page for page, *_ in EXAMPLES) == numbers


def test_links_within_the_repository_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
