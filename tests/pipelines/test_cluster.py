"""The cluster files: the schemas of Ray, Kubernetes and KubeRay, rules of our own, and one image for all.

Kubernetes' schemas come with the package kubernetes-validate; KubeRay's is `kuberay.yaml` beside this file. The rules
below are for the mistakes that those do not see, and each rule is shown to see its mistake.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree, which
from tempfile import mkdtemp
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from made import write_pairs
from ray.autoscaler._private.util import prepare_config, validate_config
from referencing import Registry, Resource
from seaweed import free_ports

from rwkvfusion.pipelines.cli import COMMANDS, main
from rwkvfusion.stages.dataset.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "infra" / "deploy"
Yaml = dict[str, Any]

CONTAINERFILE, README = DEPLOY / "Containerfile", DEPLOY / "README.md"
KUBERNETES = "1.37"
"""The version whose schemas are held against the files: the newest that kubernetes-validate has."""


def load(name: str) -> Yaml:
    document: Yaml = yaml.safe_load((ROOT / name).read_text())
    # Anchors make shared objects; a mutation must touch one place only.
    return copy.deepcopy(yaml.safe_load(yaml.dump(document, Dumper=_NoAliases)))


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def pinned(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert match, package
    return match[1]


# --- ray up


def launcher_problems(config: Yaml) -> list[str]:
    """Ray's schema and rules, then what Ray does not look at."""
    try:
        prepared = prepare_config(copy.deepcopy(config))
        validate_config(prepared)
    except (jsonschema.ValidationError, ValueError, KeyError) as error:
        return [f"Ray: {error}"]
    problems = []
    for name, node in prepared["available_node_types"].items():
        if node["min_workers"] > node["max_workers"]:
            problems.append(f"{name}: min_workers over max_workers")
        if not node["resources"]:
            problems.append(f"{name}: no resources")
        if node["max_workers"] > prepared["max_workers"]:
            problems.append(f"{name}: more than max_workers of the cluster")
    if not any(node["resources"].get("GPU") for node in prepared["available_node_types"].values()):
        problems.append("no node type with a GPU")
    commands = str([value for key, value in prepared.items() if key.endswith("_commands")])
    if "http" in commands or "pip install" in commands:
        problems.append("Ray's default setup commands, or others that install, would run on the nodes")
    if "--autoscaling-config" not in str(prepared["head_start_ray_commands"]):
        problems.append("the head would not scale")
    if "RAY_AUTH_MODE=token" not in str(prepared["docker"].get("run_options")):
        problems.append("no token is asked for")
    return problems


def test_ray_cluster_is_valid() -> None:
    assert launcher_problems(load("ray_cluster.yaml")) == []


@pytest.mark.parametrize(
    ("message", "mutate"),
    [
        ("Additional properties", lambda c: c.update(initial_workers=1)),
        ("Additional properties", lambda c: c["docker"].update(imgae="x")),
        ("Additional properties", lambda c: c["available_node_types"]["cpu"].update(maxworkers=3)),
        ("not of type 'integer'", lambda c: c.update(max_workers="12")),
        ("resources", lambda c: c["available_node_types"]["gpu"].pop("resources")),
        ("head_node_type", lambda c: c.update(head_node_type="heads")),
        ("sum of `min_workers`", lambda c: c["available_node_types"]["cpu"].update(min_workers=13)),
        ("min_workers over", lambda c: c["available_node_types"]["cpu"].update(min_workers=9)),
        ("no node type with a GPU", lambda c: c["available_node_types"].pop("gpu")),
        ("default setup commands", lambda c: c.pop("setup_commands")),
        ("default setup commands", lambda c: c.pop("head_setup_commands")),
        ("would not scale", lambda c: c.update(head_start_ray_commands=["ray start --head"])),
        ("no token", lambda c: c["docker"].pop("run_options")),
    ],
)
def test_launcher_mistakes_are_seen(message: str, mutate: Callable[[Yaml], object]) -> None:
    config = load("ray_cluster.yaml")
    mutate(config)
    assert message in "\n".join(launcher_problems(config))


# --- Kubernetes


@cache
def kuberay() -> Draft202012Validator:
    """The schema of RayJob and RayCronJob, with the strict one of the Kubernetes objects that lie in them."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
    definitions = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    schema = yaml.safe_load((Path(__file__).parent / "kuberay.yaml").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, registry=definitions @ Registry())


def schema_problems(document: Yaml) -> list[str]:
    """Where a document leaves the schema of its kind, unknown fields among it."""
    if str(document.get("apiVersion")).startswith("ray.io/"):
        return [f"{error.json_path}: {error.message}" for error in kuberay().iter_errors(document)]
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{list(error.absolute_path)}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"there is no {document['kind']} of {document['apiVersion']}"]
    return []


def quantity(text: str) -> float:
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1.0}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|Ki|Mi|Gi|Ti)?", str(text))
    if not match:
        raise ValueError(f"not a quantity: {text}")
    return float(match[1]) * units[match[2] or ""]


def resource_problems(where: str, resources: Yaml) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in requests or name not in limits:
            yield f"{where}: {name} is not both requested and limited"
    for name in requests.keys() & limits.keys():
        if quantity(requests[name]) > quantity(limits[name]):
            yield f"{where}: {name} requested over its limit"


def pod_problems(where: str, pod: Yaml) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{where}: may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{where}: no seccomp profile"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = set()
    for container in pod["containers"]:
        place = f"{where}/{container['name']}"
        yield from resource_problems(place, container.get("resources", {}))
        rights = container.get("securityContext", {})
        if rights.get("allowPrivilegeEscalation") is not False or rights.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{place}: keeps privileges"
        if not re.search(r":v?\d[\w.]*$", container["image"]):
            yield f"{place}: image without a version"
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
    for name in sorted(mounted - volumes):
        yield f"{where}: volume {name} is mounted but not declared"
    for name in sorted(volumes - mounted):
        yield f"{where}: volume {name} is declared but not mounted"


def group_problems(group: Yaml) -> Iterator[str]:
    name = group.get("groupName", "?")
    least, now, most = (group.get(key, -1) for key in ("minReplicas", "replicas", "maxReplicas"))
    if not 0 <= least <= now <= most or most == 0:
        yield f"{name}: replicas must be 0 <= min <= now <= max"
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    tolerated = [taint.get("key") for taint in group["template"]["spec"].get("tolerations", [])]
    if ("nvidia.com/gpu" in limits) != ("nvidia.com/gpu" in tolerated):
        yield f"{name}: a GPU worker limits and tolerates nvidia.com/gpu, another neither"


def context_of(words: list[str]) -> click.Context:
    """The call of one of our commands, as click takes it apart: `rwkvfusion --tolerant COMMAND ...`."""
    command, *arguments = [word for word in words[1:] if word != "--tolerant"]
    known = main.get_command(click.Context(main), command)
    if words[0] != "rwkvfusion" or known is None:
        raise click.UsageError(f"no command {words[0]} {command}")
    return known.make_context(command, arguments)


def entrypoint_problems(entrypoint: str, head: Yaml) -> Iterator[str]:
    """The command line must be one of ours that is not tried again for exit code 3, its recipe in a mounted folder."""
    words = shlex.split(entrypoint)
    if "--tolerant" not in words:
        yield "entrypoint: would be tried again for exit code 3"
    try:
        context = context_of(words)
    except click.ClickException as error:
        yield f"entrypoint: {error.format_message()}"
        return
    mounts = [mount["mountPath"] for mount in head.get("volumeMounts", [])]
    if str(Path(context.params["recipe"]).parent) not in mounts:
        yield f"entrypoint: {context.params['recipe']} is not on the head"


def rayjob_problems(job: Yaml) -> list[str]:
    return schema_problems(job) or spec_problems(job["spec"])


def spec_problems(spec: Yaml) -> list[str]:
    cluster = spec["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    pods = {"submitter": spec["submitterPodTemplate"]["spec"], "head": head}
    pods |= {group.get("groupName", "?"): group["template"]["spec"] for group in groups}

    problems = []
    for where, pod in pods.items():
        problems += pod_problems(where, pod)
    for group in groups:
        problems += group_problems(group)
    problems += entrypoint_problems(spec["entrypoint"], head["containers"][0])
    problems += resource_problems("autoscaler", cluster["autoscalerOptions"].get("resources", {}))
    if len(pods) != 2 + len(groups):
        problems.append("two groups have one name")
    if cluster.get("enableInTreeAutoscaling") is not True:
        problems.append("does not scale")
    if cluster.get("authOptions") != {"mode": "token"}:
        problems.append("no token is asked for")
    if cluster.get("rayVersion") != pinned("ray"):
        problems.append(f"rayVersion is not the pinned {pinned('ray')}")
    if len(images(spec)) != 1:
        problems.append(f"images differ: {sorted(images(spec))}")
    if not spec.get("preRunningDeadlineSeconds") or not spec.get("activeDeadlineSeconds"):
        problems.append("one that hangs would keep the next ones out for ever")
    stores = {str(pod["containers"][0].get("envFrom")) for where, pod in pods.items() if where != "submitter"}
    if stores != {"[{'secretRef': {'name': 'rwkvfusion-storage'}}]"}:
        problems.append("not every Ray pod has the store's credentials")
    return problems


def images(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["image"]} if isinstance(node.get("image"), str) else set()
        return own.union(*map(images, node.values()))
    return set().union(*map(images, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_rayjob_is_valid_for_each_command(command: str) -> None:
    """As the README makes them: `sed s/prepare/COMMAND/g`."""
    job = yaml.safe_load((ROOT / "infra" / "deploy" / "rayjob.yaml").read_text().replace("prepare", command))
    assert rayjob_problems(job) == []


def head_of(job: Yaml) -> Yaml:
    spec: Yaml = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return spec


def worker(job: Yaml, index: int) -> Yaml:
    group: Yaml = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][index]
    return group


@pytest.mark.parametrize(
    ("message", "mutate"),
    [
        ("'ray.io/v1' was expected", lambda j: j.update(apiVersion="ray.io/v1alpha1")),
        ("'entryPoint' was unexpected", lambda j: j["spec"].update(entryPoint="x")),
        ("'imagePullpolicy' was unexpected", lambda j: head_of(j)["containers"][0].update(imagePullpolicy="Always")),
        ("'runAsNonroot' was unexpected", lambda j: head_of(j)["securityContext"].update(runAsNonroot=True)),
        ("'1000' is not of type 'integer'", lambda j: head_of(j)["securityContext"].update(runAsUser="1000")),
        ("not of type 'integer'", lambda j: worker(j, 0).update(maxReplicas="8")),
        ("not of type 'string'", lambda j: worker(j, 0).update(rayStartParams={"num-cpus": 8})),
        ("'maxReplicas' is a required property", lambda j: worker(j, 1).pop("maxReplicas")),
        ("True was expected", lambda j: j["spec"].update(shutdownAfterJobFinishes=False)),
        ("'Sidecar' is not one of", lambda j: j["spec"].update(submissionMode="Sidecar")),
        (
            "tried again for exit code 3",
            lambda j: j["spec"].update(entrypoint="rwkvfusion prepare /etc/rwkvfusion/recipes/prepare.yaml"),
        ),
        ("no command rwkvfusion prep", lambda j: j["spec"].update(entrypoint="rwkvfusion prep r.yaml")),
        ("No such option", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare --recipe r.yaml")),
        ("Missing argument", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare")),
        ("is not on the head", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare /etc/r.yaml")),
        ("min <= now <= max", lambda j: worker(j, 0).update(minReplicas=9)),
        ("one name", lambda j: worker(j, 1).update(groupName="cpu")),
        ("tolerates", lambda j: worker(j, 1)["template"]["spec"].pop("tolerations")),
        ("memory is not both", lambda j: head_of(j)["containers"][0]["resources"]["limits"].pop("memory")),
        ("over its limit", lambda j: head_of(j)["containers"][0]["resources"]["requests"].update(cpu="5")),
        ("images differ", lambda j: head_of(j)["containers"][0].update(image="registry.example.com/rwkvfusion:0.3.0")),
        ("without a version", lambda j: head_of(j)["containers"][0].update(image="registry.example.com/rwkvfusion")),
        ("mounted but not declared", lambda j: head_of(j)["volumes"].pop()),
        ("declared but not mounted", lambda j: head_of(j)["containers"][0]["volumeMounts"].pop()),
        ("may run as root", lambda j: head_of(j)["securityContext"].pop("runAsNonRoot")),
        ("keeps privileges", lambda j: worker(j, 0)["template"]["spec"]["containers"][0].pop("securityContext")),
        ("credentials", lambda j: worker(j, 1)["template"]["spec"]["containers"][0].pop("envFrom")),
        ("does not scale", lambda j: j["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=False)),
        ("no token", lambda j: j["spec"]["rayClusterSpec"].pop("authOptions")),
        ("rayVersion", lambda j: j["spec"]["rayClusterSpec"].update(rayVersion="2.59.0")),
        ("'shutdownAfterJobFinishes' is a required", lambda j: j["spec"].pop("shutdownAfterJobFinishes")),
        ("hangs", lambda j: j["spec"].pop("activeDeadlineSeconds")),
    ],
)
def test_rayjob_mistakes_are_seen(message: str, mutate: Callable[[Yaml], object]) -> None:
    job = load("infra/deploy/rayjob.yaml")
    mutate(job)
    assert message in "\n".join(rayjob_problems(job))


def test_retrain_may_create_the_job_and_see_its_end_and_nothing_else() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "retrain.yaml").read_text()))
    assert [schema_problems(document) for document in documents] == [[]] * 4
    account, role, binding, cron = documents
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert len(cron["spec"]["schedule"].split()) == 5
    job = cron["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert list(pod_problems("cron", pod)) == []
    [container] = pod["containers"]
    assert list(entrypoint_problems(shlex.join(container["args"]), container)) == []
    context = context_of(container["args"])
    assert Path(context.params["rayjob"]).parent in {Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    # It lists RayJobs, looks the store's lease up, and fails for good where the command does.
    assert container["envFrom"] == [{"secretRef": {"name": "rwkvfusion-storage"}}]
    (fails, _) = job["podFailurePolicy"]["rules"]
    assert (fails["action"], fails["onExitCodes"]["containerName"]) == ("FailJob", container["name"])
    # `kubectl create` from one file again and again needs a name the server makes.
    assert "generateName" in load("infra/deploy/rayjob.yaml")["metadata"]


@pytest.mark.parametrize(
    ("message", "mutate"),
    [
        ("'schedul' was unexpected", lambda c: c["spec"].update(schedul="x")),
        ("'schedule' is a required property", lambda c: c["spec"].pop("schedule")),
        ("not of type 'integer'", lambda c: c["spec"]["jobTemplate"]["spec"].update(backoffLimit="two")),
        ("'podFailurPolicy' was unexpected", lambda c: c["spec"]["jobTemplate"]["spec"].update(podFailurPolicy={})),
        ("no CronJob of batch/v1beta1", lambda c: c.update(apiVersion="batch/v1beta1")),
    ],
)
def test_cronjob_mistakes_are_seen(message: str, mutate: Callable[[Yaml], object]) -> None:
    *_, cron = yaml.safe_load_all((DEPLOY / "retrain.yaml").read_text())
    mutate(cron)
    assert message in "\n".join(schema_problems(cron))


def test_raycronjob_is_what_the_readme_puts_together() -> None:
    """Its cluster is a head alone until the job asks for workers, so that one that comes too soon costs a head."""
    (line,) = re.findall(r"^ +(\{ cat infra/deploy/raycronjob\.yaml; .*) \| kubectl", README.read_text(), re.MULTILINE)
    made = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
    cron = yaml.safe_load(made.stdout)
    assert schema_problems(cron) == []
    template = cron["spec"]["jobTemplate"]
    assert spec_problems(template) == []
    assert "retrain /etc/rwkvfusion/recipes/retrain.yaml" in template["entrypoint"]
    groups = template["rayClusterSpec"]["workerGroupSpecs"]
    assert [(group["replicas"], group["minReplicas"]) for group in groups] == [(0, 0), (0, 0)]
    # KubeRay 1.6 has none; where one is wanted, it is the CronJob's.
    cron["spec"]["concurrencyPolicy"] = "Forbid"
    assert "'concurrencyPolicy' was unexpected" in "\n".join(schema_problems(cron))


# --- all together


def test_one_image_and_one_user_everywhere() -> None:
    cluster, job = load("ray_cluster.yaml"), load("infra/deploy/rayjob.yaml")
    crons = list(yaml.safe_load_all((DEPLOY / "retrain.yaml").read_text()))
    assert images(job) == images(crons) == {cluster["docker"]["image"]}
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    assert cluster["docker"]["image"] in lines[1]
    user = [line for line in lines if line.startswith("USER")][-1]
    security = head_of(job)["securityContext"]
    assert user == f"USER {security['runAsUser']}:{security['runAsGroup']}"


def copied() -> list[str]:
    """What the Containerfile takes from the repository."""
    text = CONTAINERFILE.read_text()
    return [source for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for source in line.split()[:-1]]


def test_containerfile_copies_what_the_package_needs() -> None:
    text = CONTAINERFILE.read_text()
    assert all((ROOT / source).exists() for source in copied())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {folder.partition("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    needed |= {"pyproject.toml", "setup.py", project["project"]["readme"], *project["project"]["license-files"]}
    assert set(copied()) == needed | {"constraints.txt"}
    assert "--constraint constraints.txt" in text
    # setup.py builds the kernels where it finds a compiler, and their threads are of a library that g++ brings.
    assert re.search(r"apt-get install .*\bg\+\+", text)
    assert re.search(r"apt-get install .*\blibgomp1\b", text)
    assert set(re.findall(r"python:\S+", text)) == {f"python:3.{pinned_python()}-slim-bookworm"}


@pytest.mark.slow
def test_the_image_is_built_from_what_the_containerfile_copies(tmp_path: Path) -> None:
    """Its own build command, where only that is, and no git; without the kernels, which take minutes."""
    (command,) = re.findall(r"^RUN (printf .*\\\n.*pip wheel.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    source = tmp_path / "src"
    for name in copied():
        if (ROOT / name).is_dir():
            copytree(ROOT / name, source / name, ignore=ignore_patterns("*.so", "*.fatbin", "__pycache__", "COMMIT"))
        else:
            source.mkdir(exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = command.replace("/wheels", str(tmp_path / "wheels")).replace(
        "pip wheel", f"{sys.executable} -m pip wheel"
    )
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "COMMIT": "0123abc"}
    environment["RWKVFUSION_BUILD"] = "none"
    done = subprocess.run(["sh", "-c", command], cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "wheels").iterdir()
    packed = zipfile.ZipFile(wheel)
    assert packed.read("rwkvfusion/infra/COMMIT") == b"0123abc"
    for files_ in ("model/shipped/*/*", "pipelines/recipes/*.yaml", "infra/deploy/*.yaml", "kernels/csrc/*/*"):
        for path in source.glob(files_):
            assert f"rwkvfusion/{path.relative_to(source)}" in packed.namelist()


def test_hadolint_finds_nothing_in_the_containerfile() -> None:
    hadolint = which("hadolint", path=str(Path(sys.executable).parent)) or which("hadolint")
    if hadolint is None:
        pytest.skip("there is no hadolint for this platform")
    done = subprocess.run([hadolint, str(CONTAINERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def pinned_python() -> str:
    """The oldest minor version the package says it runs on, which is the one its constraints were made for."""
    match = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert match
    return match[1]


@pytest.mark.parametrize(
    "name", ["ray_cluster.yaml", *(f"infra/deploy/{path.name}" for path in sorted(DEPLOY.iterdir()) if path.is_file())]
)
def test_no_secret_is_written_down(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|(?i:secret_access_key|password)\s*[:=]\s*\S", text)


def test_readme_names_real_commands() -> None:
    text = README.read_text()
    named = set(re.findall(r"rwkvfusion (\w+) [A-Za-z]", text))
    assert {"prepare"} <= named <= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_submitted_as_the_readme_says(tmp_path: Path) -> None:
    """To a head on this machine that asks for a token: a recipe of the package, then one from a folder sent along."""
    if find_spec("aiohttp_cors") is None:
        pytest.skip("the job server needs ray[default]: pip install 'ray[default]'")
    home = Path(mkdtemp(prefix="head-", dir="/tmp"))
    write_pairs(tmp_path / "MSRS", ["00131d", "00055d"])
    (tmp_path / "my-recipes").mkdir()
    (tmp_path / "my-recipes" / "my-pairs.yaml").write_text(
        f"task: vif\nname: mine\nsource: {{layout: msrs, root: {tmp_path}/MSRS}}\noutput: {tmp_path}/datasets\n"
    )
    (first,) = re.findall(r"^ +(ray job submit -- rwkvfusion prepare .*)$", README.read_text(), re.MULTILINE)
    (second,) = re.findall(r"^ +(ray job submit --working-dir .*)$", README.read_text(), re.MULTILINE)
    port, dashboard, agent = free_ports(3)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"HOME": str(home), "PATH": path, "RAY_AUTH_MODE": "token"}
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    environment.pop("RAY_ADDRESS", None)
    run = partial(subprocess.run, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run("ray get-auth-token --generate").returncode == 0
    start = f"ray start --head --block --num-cpus=3 --port={port} --dashboard-port={dashboard} --temp-dir={home}/ray"
    start += f" --dashboard-agent-listen-port={agent} --node-ip-address=127.0.0.1 --disable-usage-stats"
    with subprocess.Popen(shlex.split(start), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as head:
        try:
            end = time.monotonic() + 120
            while (submitted := run(first.replace("s3://BUCKET", str(tmp_path)))).returncode:
                assert time.monotonic() < end, submitted.stdout + submitted.stderr
                assert "datasets/msrs" not in submitted.stdout, submitted.stdout
                time.sleep(2)
            assert "the dataset holds 2 pairs in 1 shards" in submitted.stdout
            submitted = run(second)
            assert (submitted.returncode, "datasets/mine" in submitted.stdout) == (0, True), submitted.stdout
            refused = run(second, env=environment | {"HOME": str(tmp_path)})
            assert refused.returncode != 0
            assert "token" in refused.stdout + refused.stderr
        finally:
            head.terminate()
    rmtree(home, ignore_errors=True)
    assert all(len(Dataset.open(str(tmp_path / "datasets" / name))) == 2 for name in ("msrs", "mine"))
