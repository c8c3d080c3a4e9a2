"""The table of what the defaults reach: it is complete, current, and no preset of Brax unlearns."""

import importlib.util
import json
from pathlib import Path

import pytest

from jaxrl.analysis.statistics import final_return, iqm
from jaxrl.envs import names

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "defaults.json"
ROWS = json.loads(RESULTS.read_text())["rows"]


@pytest.fixture(scope="module")
def defaults():
    spec = importlib.util.spec_from_file_location("defaults", ROOT / "benchmarks" / "defaults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row_of(defaults, task, steps, **changes):
    settings = defaults.settings_of("ppo", task)
    row = {"task": task, "algorithm": "ppo", "steps": steps, "settings": settings}
    row |= {"default_steps": 4_000_000, "untrained": final_return([940.0, 950.0, 960.0])}
    return row | {"trained": final_return([1234.5, 70.25, None])} | changes


def test_every_task_has_its_rows_or_was_not_run(defaults):
    rows = [row_of(defaults, "brax/ant", steps) for steps in (499_712, 4_003_840)]
    lines = defaults.table(rows).splitlines()
    tasks = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert sorted({*tasks}) == sorted(names()) and len(tasks) == len(names()) + 1
    shown = "| brax/ant | ppo | 500k | 4M | 950 | none | 1,234, 70.25, none |"
    assert shown in lines and shown.replace("500k", "4M") in lines
    assert "| brax/hopper | not run | | | | | |" in lines


def test_rows_of_earlier_settings_and_of_the_same_run_are_dropped(defaults, tmp_path):
    out = tmp_path / "defaults.json"
    old = row_of(defaults, "brax/hopper", 1000, settings={"total_steps": 1})
    first, second = (row_of(defaults, "brax/ant", 1000, seconds=time) for time in (1.0, 2.0))
    for row in (old, first, second):
        defaults.update(out, [row])
    assert json.loads(out.read_text())["rows"] == [second]
    assert out.with_suffix(".md").read_text() == defaults.table([second])


def test_the_table_is_that_of_the_presets_as_they_are(defaults):
    for row in ROWS:
        now = defaults.settings_of(row["algorithm"], row["task"])
        assert row["settings"] == now, f"run benchmarks/defaults.py for {row['task']} again"
    assert RESULTS.with_suffix(".md").read_text() == defaults.table(ROWS)


def test_no_preset_ends_below_the_untrained_policy_on_brax():
    rows = [row for row in ROWS if row["task"].startswith("brax/")]
    rows = [row for row in rows if row["algorithm"] in ("ppo", "sac")]
    assert rows
    for row in rows:
        before, after = (iqm(row[which]["per_seed"]) for which in ("untrained", "trained"))
        assert len(row["seeds"]) >= 3 and after >= before, (row["task"], row["algorithm"])
