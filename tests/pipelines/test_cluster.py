"""The cluster files: Ray's own schema for `ray up`, structural rules for Kubernetes, and one image for all.

KubeRay's full schema is not at hand offline; the rules below are the mistakes one makes in such files, and each
rule is shown to see its mistake.
"""

import copy
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rwkvfusion.pipelines.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
Yaml = dict[str, Any]

POD_KEYS = {
    "automountServiceAccountToken",
    "containers",
    "restartPolicy",
    "securityContext",
    "serviceAccountName",
    "tolerations",
    "volumes",
}
CONTAINER_KEYS = {"args", "envFrom", "image", "name", "ports", "resources", "securityContext", "volumeMounts"}
JOB_KEYS = {
    "backoffLimit",
    "entrypoint",
    "rayClusterSpec",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterPodTemplate",
    "ttlSecondsAfterFinished",
}
CLUSTER_KEYS = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


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


def unknown_keys(where: str, mapping: Yaml, known: set[str]) -> Iterator[str]:
    for key in sorted(mapping.keys() - known):
        yield f"{where}: unknown key {key}"


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
    yield from unknown_keys(where, pod, POD_KEYS)
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{where}: may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{where}: no seccomp profile"
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounted = set()
    for container in pod["containers"]:
        place = f"{where}/{container['name']}"
        yield from unknown_keys(place, container, CONTAINER_KEYS)
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
    yield from unknown_keys(name, group, GROUP_KEYS)
    least, now, most = (group.get(key, -1) for key in ("minReplicas", "replicas", "maxReplicas"))
    if not 0 <= least <= now <= most or most == 0:
        yield f"{name}: replicas must be 0 <= min <= now <= max"
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    tolerated = [taint.get("key") for taint in group["template"]["spec"].get("tolerations", [])]
    if ("nvidia.com/gpu" in limits) != ("nvidia.com/gpu" in tolerated):
        yield f"{name}: a GPU worker limits and tolerates nvidia.com/gpu, another neither"


def entrypoint_problems(entrypoint: str, head: Yaml) -> Iterator[str]:
    """The command line must be one of ours that is not tried again for exit code 3, its recipe in a mounted folder."""
    program, *words = shlex.split(entrypoint)
    if "--tolerant" not in words:
        yield "entrypoint: would be tried again for exit code 3"
    command, *arguments = [word for word in words if word != "--tolerant"]
    if program != "rwkvfusion" or (known := main.get_command(None, command)) is None:
        yield f"entrypoint: no command {program} {command}"
        return
    try:
        context = known.make_context(command, arguments)
    except click.ClickException as error:
        yield f"entrypoint: {error.format_message()}"
        return
    mounts = [mount["mountPath"] for mount in head.get("volumeMounts", [])]
    if str(Path(context.params["recipe"]).parent) not in mounts:
        yield f"entrypoint: {context.params['recipe']} is not on the head"


def rayjob_problems(job: Yaml) -> list[str]:
    if (job.get("apiVersion"), job.get("kind")) != ("ray.io/v1", "RayJob"):
        return ["not a ray.io/v1 RayJob"]
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    groups = cluster["workerGroupSpecs"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    pods = {"submitter": spec["submitterPodTemplate"]["spec"], "head": head}
    pods |= {group.get("groupName", "?"): group["template"]["spec"] for group in groups}

    problems = [*unknown_keys("spec", spec, JOB_KEYS), *unknown_keys("cluster", cluster, CLUSTER_KEYS)]
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
    if len(images(job)) != 1:
        problems.append(f"images differ: {sorted(images(job))}")
    if spec.get("shutdownAfterJobFinishes") is not True:
        problems.append("the cluster would outlive the job")
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
        ("not a ray.io/v1", lambda j: j.update(apiVersion="ray.io/v1alpha1")),
        ("unknown key entryPoint", lambda j: j["spec"].update(entryPoint="x")),
        ("unknown key imagePullpolicy", lambda j: head_of(j)["containers"][0].update(imagePullpolicy="Always")),
        (
            "tried again for exit code 3",
            lambda j: j["spec"].update(entrypoint="rwkvfusion prepare /etc/rwkvfusion/recipes/prepare.yaml"),
        ),
        ("no command rwkvfusion prep", lambda j: j["spec"].update(entrypoint="rwkvfusion prep r.yaml")),
        ("No such option", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare --recipe r.yaml")),
        ("Missing argument", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare")),
        ("is not on the head", lambda j: j["spec"].update(entrypoint="rwkvfusion prepare /etc/r.yaml")),
        ("min <= now <= max", lambda j: worker(j, 0).update(minReplicas=9)),
        ("min <= now <= max", lambda j: worker(j, 1).pop("maxReplicas")),
        ("one name", lambda j: worker(j, 1).update(groupName="cpu")),
        ("tolerates", lambda j: worker(j, 1)["template"]["spec"].pop("tolerations")),
        ("memory is not both", lambda j: head_of(j)["containers"][0]["resources"]["limits"].pop("memory")),
        ("over its limit", lambda j: head_of(j)["containers"][0]["resources"]["requests"].update(cpu="5")),
        ("images differ", lambda j: head_of(j)["containers"][0].update(image="registry.example.com/rwkvfusion:0.2.0")),
        ("without a version", lambda j: head_of(j)["containers"][0].update(image="registry.example.com/rwkvfusion")),
        ("mounted but not declared", lambda j: head_of(j)["volumes"].pop()),
        ("declared but not mounted", lambda j: head_of(j)["containers"][0]["volumeMounts"].pop()),
        ("may run as root", lambda j: head_of(j)["securityContext"].pop("runAsNonRoot")),
        ("keeps privileges", lambda j: worker(j, 0)["template"]["spec"]["containers"][0].pop("securityContext")),
        ("credentials", lambda j: worker(j, 1)["template"]["spec"]["containers"][0].pop("envFrom")),
        ("does not scale", lambda j: j["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=False)),
        ("no token", lambda j: j["spec"]["rayClusterSpec"].pop("authOptions")),
        ("rayVersion", lambda j: j["spec"]["rayClusterSpec"].update(rayVersion="2.59.0")),
        ("outlive", lambda j: j["spec"].pop("shutdownAfterJobFinishes")),
    ],
)
def test_rayjob_mistakes_are_seen(message: str, mutate: Callable[[Yaml], object]) -> None:
    job = load("infra/deploy/rayjob.yaml")
    mutate(job)
    assert message in "\n".join(rayjob_problems(job))


def test_retrain_may_create_the_job_and_nothing_else() -> None:
    account, role, binding, cron = yaml.safe_load_all((ROOT / "infra" / "deploy" / "retrain.yaml").read_text())
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert len(cron["spec"]["schedule"].split()) == 5
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert list(pod_problems("cron", pod)) == []
    [mount] = pod["containers"][0]["volumeMounts"]
    assert f"--filename={mount['mountPath']}/rayjob.yaml" in pod["containers"][0]["args"]
    # `kubectl create` from one file again and again needs a name the server makes.
    assert "generateName" in load("infra/deploy/rayjob.yaml")["metadata"]


# --- all together


def test_one_image_and_one_user_everywhere() -> None:
    cluster, job = load("ray_cluster.yaml"), load("infra/deploy/rayjob.yaml")
    assert images(job) == {cluster["docker"]["image"]}
    lines = (ROOT / "infra" / "deploy" / "Containerfile").read_text().splitlines()
    assert cluster["docker"]["image"] in lines[1]
    user = [line for line in lines if line.startswith("USER")][-1]
    security = head_of(job)["securityContext"]
    assert user == f"USER {security['runAsUser']}:{security['runAsGroup']}"


def test_containerfile_copies_what_the_package_needs() -> None:
    text = (ROOT / "infra" / "deploy" / "Containerfile").read_text()
    copied = [source for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for source in line.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"infra", "kernels", "model", "pipelines", "stages", "pyproject.toml", "setup.py", "constraints.txt"} <= set(
        copied
    )
    assert "--constraint constraints.txt" in text
    # setup.py builds the kernels where it finds a compiler.
    assert re.search(r"apt-get install .*\bg\+\+", text)
    assert f"python:3.{pinned_python()}-slim" in text


def pinned_python() -> str:
    """The oldest minor version the package says it runs on, which is the one its constraints were made for."""
    match = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert match
    return match[1]


@pytest.mark.parametrize(
    "name", ["ray_cluster.yaml", "infra/deploy/rayjob.yaml", "infra/deploy/retrain.yaml", "infra/deploy/Containerfile"]
)
def test_no_secret_is_written_down(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|(?i:secret_access_key|password)\s*[:=]\s*\S", text)


def test_readme_names_real_commands() -> None:
    text = (ROOT / "infra" / "deploy" / "README.md").read_text()
    named = set(re.findall(r"rwkvfusion (\w+) [A-Za-z]", text))
    assert {"prepare"} <= named <= set(COMMANDS)
