"""The job files in ``deploy/``: they parse, ask for what they need, and start what they should."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from shared import script_module

from jaxrl import cli
from jaxrl.cli.presets import ppo

DEPLOY = Path(__file__).parent.parent / "deploy"
SLURM = DEPLOY / "slurm.sbatch"


def parses(text):
    return subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_the_slurm_script_asks_for_a_process_per_gpu():
    text = SLURM.read_text()
    assert text.startswith("#!") and parses(text)
    lines = re.findall(r"^#SBATCH (.+)$", text, re.MULTILINE)
    asked = dict(re.fullmatch(r"--([a-z-]+)(?:=(\S+))?", line).groups() for line in lines)
    assert len(asked) == len(lines) == text.count("#SBATCH")
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8" and int(asked["nodes"]) > 1
    assert asked["signal"].startswith("TERM@") and "requeue" in asked
    assert re.fullmatch(r"\d+:\d\d:\d\d", asked["time"])
    # SLURM reads these lines up to the first command.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


@pytest.fixture
def submitted(tmp_path):
    """Runs the SLURM script where ``srun`` prints what it was asked to start."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    path = {"PATH": f"{srun.parent}:/usr/bin:/bin"}

    def submit(*words):
        command = ["bash", SLURM, *words]
        return subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)

    return submit


def test_the_slurm_script_starts_a_run_and_continues_it(submitted, tmp_path):
    words = ["ppo", "--env", "brax/ant", "--run-dir", "runs/a b"]
    started = ["python", "experiments/ppo.py", *words[1:], "--distributed"]
    assert submitted(*words).stdout.splitlines()[1:] == started
    (tmp_path / "runs" / "a b").mkdir(parents=True)
    (tmp_path / "runs" / "a b" / "config.json").touch()
    started.insert(-1, "--resume")
    assert submitted(*words).stdout.splitlines()[1:] == started


def test_the_slurm_script_wants_a_script_and_a_folder(submitted):
    for words, said in (([], "name a script"), (["ppo"], "give the folder of the run")):
        done = submitted(*words)
        assert done.returncode != 0 and said in done.stderr and not done.stdout


def test_the_jobset_starts_one_process_per_host_and_may_read_its_job():
    documents = list(yaml.safe_load_all((DEPLOY / "jobset.yaml").read_text()))
    account, role, binding, jobset = documents
    kinds = [(each["apiVersion"], each["kind"]) for each in documents]
    assert kinds == [
        ("v1", "ServiceAccount"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("rbac.authorization.k8s.io/v1", "RoleBinding"),
        ("jobset.x-k8s.io/v1alpha2", "JobSet"),
    ]
    assert len({each["metadata"]["name"] for each in documents}) == 1
    allowed = {name: rule["verbs"] for rule in role["rules"] for name in rule["resources"]}
    assert {"list"} <= set(allowed["pods"]) and {"get"} <= set(allowed["jobs"])
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]

    network = jobset["spec"]["network"]
    assert network["enableDNSHostnames"] and network["publishNotReadyAddresses"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"] > 1 == replicated["replicas"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {"name", "image", "command", "args"} <= container.keys()
    assert container["ports"] == [{"containerPort": 55527}]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}

    (text,) = container["args"]
    assert parses(text)
    command = text.replace("\\\n", " ").replace('"${resume[@]}"', "--resume").splitlines()[-1]
    words = shlex.split(command)
    assert words[:3] == ["exec", "python", "experiments/ppo.py"]
    with script_module("ppo") as script:
        config = cli.parse(script.Config, ppo.PRESETS, words[3:])
    assert config.distributed == () and config.resume
