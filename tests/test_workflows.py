"""The public CI and the hooks before a commit: valid, and of the same versions as the workbench."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import wb_environment
import workbench

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SYSTEMS = ["ubuntu-latest", "macos-latest", "windows-latest"]
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")


class Strict(yaml.SafeLoader):
    """YAML in which `on` is a word, as GitHub reads it, and a key that stands twice an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice"
        return super().construct_mapping(node, deep)


Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool" or first not in "oO"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path):
    return yaml.load(path.read_text(encoding="utf-8"), Strict)


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def pinned(name):
    """The version of one of the workbench's test tools."""
    return dict(tool.split("==") for tool in wb_environment.TOOLS)[name]


def test_there_are_the_two():
    assert [path.stem for path in WORKFLOWS] == ["ci", "publish"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_what_a_workflow_needs(path):
    workflow = read(path)
    assert (
        {"name", "on", "permissions", "jobs"} <= set(workflow) <= {"name", "on", "permissions", "concurrency", "jobs"}
    )
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90 and job["steps"], name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        known = {"name", "if", "runs-on", "timeout-minutes", "strategy", "env", "steps"}
        assert set(job) <= known and set(job) >= {"runs-on", "timeout-minutes", "steps"}, name
        matrix = job.get("strategy", {}).get("matrix", {})
        used = {word.strip() for word in EXPRESSION.findall(str(job))}
        assert {word.split(".")[1] for word in used if word.startswith("matrix.")} == set(matrix), name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert set(step) <= {"name", "id", "if", "uses", "with", "run", "env", "shell"}, step
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step  # a version, not whatever is newest


def test_the_quick_tier_runs_on_three_systems_with_the_oldest_and_the_newest_host():
    matrix = read(WORKFLOWS[0])["jobs"]["quick"]["strategy"]["matrix"]
    assert matrix == {"os": SYSTEMS, "comfyui": [workbench.OLDEST_HOST, wb_environment.DEFAULT_HOST]}
    assert list(wb_environment.HOSTS)[-1] == wb_environment.DEFAULT_HOST


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_of_workflows_are_there(path):
    """Options and paths of ours that they name."""
    called = []
    for run in (step["run"] for step in steps(read(path)) if "run" in step):
        for line in re.split(r"\n", EXPRESSION.sub("0.30.0", run)):
            words = shlex.split(line)
            if words[:1] == ["python"] and words[1] == "tools/workbench.py":
                own = words[2:]
                cut = own.index("--") if "--" in own else len(own)
                workbench.parser().parse_args(own[:cut])
                assert all((ROOT / name).exists() for name in own[cut + 1 :]), line
                called.append("workbench")
            elif words[:1] == ["python"]:
                assert (ROOT / words[1]).is_file() and words[2] in (ROOT / words[1]).read_text(encoding="utf-8"), line
                called.append(Path(words[1]).stem)
            elif words[:1] == [".ci/run"]:
                assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)
                called.append("everything")
            elif words[:2] == ["pip", "install"]:
                assert all("==" in word for word in words[2:]) and f"ruff=={pinned('ruff')}" in words, line
    assert set(called) == ({"workbench", "everything", "release"} if path.stem == "ci" else {"release"})


def test_publishing_is_for_main_and_this_repository_and_has_its_secret():
    workflow = read(WORKFLOWS[1])
    assert workflow["on"]["push"] == {"branches": ["main"], "paths": ["pyproject.toml"]}
    (job,) = workflow["jobs"].values()
    assert "boxwright/boxwright" in job["if"]
    last = job["steps"][-1]
    assert last["uses"].startswith("Comfy-Org/publish-node-action@")
    assert last["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}


def test_hooks_before_a_commit_are_of_the_workbenchs_versions():
    repositories = {each["repo"].rpartition("/")[2]: each for each in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    ruff = repositories["ruff-pre-commit"]
    assert ruff["rev"] == f"v{pinned('ruff')}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    hygiene = {hook["id"] for hook in repositories["pre-commit-hooks"]["hooks"]}
    assert {"check-yaml", "check-toml", "check-json", "check-merge-conflict", "trailing-whitespace"} <= hygiene
    assert all(re.fullmatch(r"v\d+(\.\d+)+", each["rev"]) for each in repositories.values())
