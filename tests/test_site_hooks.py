"""What the documentation's build adds to its pages."""

import dataclasses
import sys

import pytest
from blocks import ROOT

sys.path.append(str(ROOT / "docs" / "hooks"))

import declared
import links
import recorded

from jaxrl import hyper
from jaxrl.agents.dsac import DSACT

AGENTS = ROOT / "jaxrl" / "agents"


@pytest.mark.parametrize(
    ("source", "page", "target", "expected"),
    [
        ("docs/mjx.md", "mjx.md", "../results/mjx_solver.json", "results/mjx_solver.json"),
        ("docs/mjx.md", "mjx.md", "../CONTRIBUTING.md#rules", "contributing.md#rules"),
        ("docs/algorithms/sac.md", "algorithms/sac.md", "../offline.md", "../offline.md"),
        ("docs/algorithms/ppo.md", "algorithms/ppo.md", "../../results", "../results/runs.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/data.md", "data.md"),
        ("docs/index.md", "index.md", "../notebooks/01_a.ipynb", "notebooks/01_a.md"),
        ("docs/index.md", "index.md", "https://example.org/a", "https://example.org/a"),
        ("docs/index.md", "index.md", "#here", "#here"),
    ],
)
def test_links_of_the_repository_become_those_of_the_site(source, page, target, expected):
    assert links.rewritten(f"[a]({target})", source, page) == f"[a]({expected})"


def test_links_to_what_is_not_on_the_site_become_text():
    text = (
        "See [`the loop`](../jaxrl/rng.py), [ppo](../results/ppo_ant) and ![a](../results/a.png)."
    )
    assert links.rewritten(text, "docs/mjx.md", "mjx.md") == (
        "See `the loop`, [ppo](results/runs.md#ppo_ant) and ![a](results/a.png)."
    )


def test_links_in_code_stay_as_they_are():
    text = "`[a](../results/a.png)`\n\n```python\nx[0](../y)\n```\n"
    assert links.rewritten(text, "docs/mjx.md", "mjx.md") == text


def test_declared_fields_are_those_of_the_class():
    """Inherited ones too, in the class's order; defaults as the class has them."""
    fields = declared.declared(AGENTS / "dsac.py")["DSACT"]
    named = {field.name: field for field in fields}
    own = [each for each in dataclasses.fields(DSACT) if hyper.declaration(each) is not None]
    assert list(named) == [each.name for each in own if hyper.is_option(each)]
    for name, field in named.items():
        if field.kind in ("number", "size"):
            assert float(field.default) == float(getattr(DSACT(), name)), name
    assert named["likelihood"].help in declared.table(fields)


def test_figure_of_a_run_has_its_result_and_command():
    text = recorded.figure("ppo_cartpole")
    assert "**500 (500 to 500)**" in text and "32 seeds" in text
    assert "ppo.py --env gymnax/CartPole-v1 --num-seeds 32 --total-steps 500000" in text
    assert "--run-dir" not in recorded.table()
    with pytest.raises(KeyError):
        recorded.figure("no_such_run")


def test_formulae_become_mathml():
    pytest.importorskip("latex2mathml")
    import mathml

    made = mathml.as_mathml('<span class="arithmatex">\\(\\overline{Q\'_j} \\log a\\)</span>')
    assert 'class="bar"' in made and "\u2032" in made and "\\" not in made
    with pytest.raises(ValueError, match="nosuch"):
        mathml.as_mathml('<span class="arithmatex">\\(\\nosuch\\)</span>')
