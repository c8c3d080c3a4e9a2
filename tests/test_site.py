"""The documentation's site: it builds without a warning, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from blocks import ROOT

from jaxrl import envs

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


class Loaded(HTMLParser):
    """The addresses that a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag in LOADING:
            self.found.append(dict(attrs).get(LOADING[tag]) or "")


@pytest.mark.slow
def test_site_builds_without_a_warning_and_without_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    for name, path in pages.items():
        page = Loaded()
        page.feed(path.read_text())
        assert not [each for each in page.found if "//" in each], name
    formulae = pages["algorithms/sac.html"].read_text()
    assert "<math" in formulae and "arithmatex" not in formulae
    assert "results/ppo_cartpole/curves.png" in pages["algorithms/ppo.html"].read_text()


def test_citation_has_what_its_schema_requires():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= said.keys()
    assert said["authors"] == [{"name": "The jaxrl developers"}]
    version = re.search('^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert said["version"] == version.group(1)


def test_every_algorithm_of_the_readme_has_a_page():
    text = (ROOT / "README.md").read_text()
    listed = (ROOT / "docs" / "algorithms" / "index.md").read_text()
    rows = text.partition("| script | algorithm")[2].partition("\n\n")[0]
    scripts = {each for each in re.findall(r"`(\w+\.py)`", rows) if "minimal" not in each}
    assert len(scripts) > 20
    assert not [each for each in scripts if f"`{each}`" not in listed]


def test_every_environment_is_on_a_page():
    pages = [*(ROOT / "docs" / "environments").glob("*.md"), ROOT / "docs" / "mjx.md"]
    text = "".join(page.read_text() for page in pages)
    suites = ("gymnax", "brax", "maze", "probe", "mjx")
    tasks = [name for suite in suites for name in envs.names(suite)]
    known = {*re.findall(r"`([^`\n]+)`", text)}
    assert not [name for name in tasks if not {name, name.partition("/")[2]} & known]
