"""The README agrees with the library."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import ln_array_api as ln

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
        "docs/choosing.md": 7,
        "docs/torch.md": 1,
        "docs/jax.md": 1,
    }
    assert Counter(page for page, *_ in EXAMPLES) == numbers


def test_links_within_the_repository_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def parameters(signature):
    """Parse names, kinds and defaults of a signature in text."""
    [definition] = ast.parse(f"def f{signature}: pass").body
    given = definition.args
    defaults = [ast.literal_eval(each) for each in given.defaults]
    named = [None if each is None else ast.literal_eval(each) for each in given.kw_defaults]
    names = [
        [each.arg for each in kind] for kind in (given.posonlyargs, given.args, given.kwonlyargs)
    ]
    return names, defaults, named


def test_the_table_of_functions_has_their_signatures():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(\(.*?\))` \| `(\w+)`.* \| `(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) == 12
    for name, shown, *others in rows:
        actual = inspect.signature(getattr(ln, name))
        plain = [
            each.replace(annotation=inspect.Parameter.empty) for each in actual.parameters.values()
        ]
        assert parameters(shown) == parameters(str(inspect.Signature(plain))), name
        assert others == [f"{name}_forward", f"{name}_backward"]
        assert all(hasattr(ln, each) for each in others)
