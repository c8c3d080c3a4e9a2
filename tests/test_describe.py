"""Descriptions of datasets: TQ, SACo and coverage against plain counts, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_formats import flat, write_h5

from jaxrl import UsageError
from jaxrl.data import Dataset, concatenate, describe
from jaxrl.data.__main__ import main
from jaxrl.data.describe import lines, unique_cells
from jaxrl.data.scores import Reference


def made(rows=400, seed=0, discrete=False):
    rng = np.random.default_rng(seed)
    obs = np.float32(rng.normal(size=(rows + 1, 3)))
    action = rng.integers(0, 3, rows) if discrete else np.float32(rng.uniform(-1, 1, (rows, 2)))
    ends = rng.random(rows) < 0.05
    reward = np.float32(rng.normal(size=rows))
    return Dataset.of(obs[:-1], action, reward, obs[1:], ends & (obs[:-1, 0] > 0), ends)


def test_episodes_and_quality():
    data = made()
    found = describe(data, references=Reference(-1.0, 4.0, "measured"))
    returns = data.returns()
    assert (found["transitions"], found["episodes"]) == (400, data.num_episodes)
    assert found["return"]["mean"] == pytest.approx(returns.mean())
    assert found["return"]["quantiles"]["0.5"] == pytest.approx(np.median(returns))
    assert found["length"]["max"] == data.lengths().max()
    assert found["terminated"] == pytest.approx(data.terminated.sum() / data.num_episodes)
    assert found["tq"] == pytest.approx((returns.mean() + 1.0) / 5.0)
    assert found["score"] == pytest.approx(100 * found["tq"])
    assert found["ranges"]["obs"][1] == data.obs.max(axis=0).tolist()
    assert json.loads(json.dumps(found)) == found
    # A duplicated dataset keeps its quality and its coverage.
    twice = describe(concatenate([data, data]), references=Reference(-1.0, 4.0, "measured"))
    assert twice["tq"] == pytest.approx(found["tq"])
    assert twice["coverage"] == found["coverage"]


@pytest.mark.parametrize("discrete", [False, True])
def test_saco_counts_cells_of_the_references_range(discrete):
    data, other = made(seed=1, discrete=discrete), made(rows=900, discrete=discrete)
    dims = ("obs[0]", "obs[2]", "action[0]")
    found = describe(data, reference=other, dims=dims, bins=5)["coverage"]

    def columns(x):
        return np.stack([x.obs[:, 0], x.obs[:, 2], x.action.reshape(x.size, -1)[:, 0]], axis=1)

    low, high = columns(other).min(axis=0), columns(other).max(axis=0)

    def cells(x):
        borders = [np.linspace(a, b, 6)[1:-1] for a, b in zip(low, high, strict=True)]
        rows = set()
        for row in columns(x):
            cell = [
                int(np.searchsorted(b, v, side="right")) for b, v in zip(borders, row, strict=True)
            ]
            cell = np.where(row < low, -1, np.where(row > high, 5, cell))
            rows.add(tuple(cell))
        return len(rows)

    assert found["cells"] == cells(data) and found["reference_cells"] == cells(other)
    assert found["saco"] == pytest.approx(cells(data) / cells(other))
    assert 0.2 < found["saco"] < 1.0
    assert describe(other, reference=other, dims=dims, bins=5)["coverage"]["saco"] == 1.0


def test_unique_cells_are_exact():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(7.0)), axis=-1).reshape(-1, 2)
    rows = np.concatenate([grid, grid[:30]])
    assert unique_cells(rows, rows.min(axis=0), rows.max(axis=0), 100) == 70
    assert unique_cells(rows, rows.min(axis=0), rows.max(axis=0), 2) == 4
    assert unique_cells(np.ones((5, 1)), np.ones(1), np.ones(1), 3) == 1


def test_dimensions_have_names():
    data = made()
    keyed = data._replace(obs={"place": data.obs[:, :1], "speed": data.obs[:, 1]},
                          next_obs={"place": data.obs[:, :1], "speed": data.obs[:, 1]})  # fmt: skip
    assert describe(keyed)["coverage"]["dims"] == ["obs.place[0]", "obs.speed[0]", "action[0]"]
    message = r"unknown dimension 'obs\[3\]'; there are obs\[0 .. 2\], action\[0 .. 1\]"
    with pytest.raises(UsageError, match=message):
        describe(data, dims=["obs[3]"])
    with pytest.raises(UsageError, match="bins is 1; it must be at least 2"):
        describe(data, bins=1)


def test_the_command(tmp_path, capsys):
    path = str(write_h5(tmp_path / "walker2d_medium-v2.hdf5", flat()))
    out = tmp_path / "out"
    assert main([path, "--reference", path, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "dataset.json").read_text())
    assert found["references"]["expert"] == 4592.3 and found["coverage"]["saco"] == 1.0
    for line in lines(found):
        assert line in printed
    assert "SACo 1.000" in printed and "TQ -0.000" in printed
    assert (out / "dataset.png").read_bytes()[:4] == b"\x89PNG"
    assert main([path, "--random", "0", "--expert", "10", "--dims", "obs[0]"]) == 0
    assert "(random 0, expert 10: given)" in capsys.readouterr().out
    for words in ([path, "--random", "0"], [str(tmp_path / "no")], [path, "--dims", "x"], []):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("jaxrl.data: ") and error.count("\n") == 1
