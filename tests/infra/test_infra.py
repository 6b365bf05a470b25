"""Claims of infra/: its files are what their readers take, run as nobody, hold no secret, and name commands that exist.

Pod templates and the volume claim are held against Kubernetes' own schemas (kubernetes-validate), the launcher's file
against Ray's, and what is KubeRay's own against ``rayjob-v1.schema.json``, which was written here from the CRD's
reference. None of them was run on a cluster by these tests.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from facecrowd.jobs import cli

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
SCHEMA = json.loads(Path(__file__).with_name("rayjob-v1.schema.json").read_text(encoding="utf-8"))
JOBS = ("release", "audit", "sweep")
KUBERNETES = "1.34"


def read(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))


def constraint(package: str) -> str:
    (line,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    return str(line)


def templates(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of a RayJob."""
    spec = job["spec"]
    yield "submitter", spec["submitterPodTemplate"]
    yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", []):
        yield group["groupName"], group["template"]


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and scalar below, in order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, None if isinstance(inner, dict | list) else inner
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


# ---------------------------------------------------------------------------------------------------------- KubeRay


@pytest.mark.parametrize("name", JOBS)
def test_a_rayjob_uses_the_fields_that_kuberay_has_with_their_types(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(read(f"kuberay/{name}.yaml"), SCHEMA)


@pytest.mark.parametrize(
    "path, value",
    [
        ("spec.shutDownAfterJobFinishes", True),
        ("spec.backoffLimit", "2"),
        ("spec.rayClusterSpec.authOptions.mode", "yes"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.workerGroupSpecs", [{"groupName": "cpu"}]),
    ],
)
def test_a_slip_in_a_rayjob_is_found(path: str, value: Any) -> None:
    job = read("kuberay/release.yaml")
    *above, last = path.split(".")
    place = job
    for key in above:
        place = place[key]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


@pytest.mark.parametrize("name", JOBS)
def test_pod_templates_are_what_kubernetes_takes(name: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for group, template in templates(read(f"kuberay/{name}.yaml")):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": group}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        wrong = copy.deepcopy(pod)
        wrong["spec"]["containers"][0]["securityContxt"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_volume_claim_is_what_kubernetes_takes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    claim = read("kuberay/volume.yaml")
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", JOBS)
def test_pods_run_as_nobody_in_particular_with_limits_and_ask_kubernetes_nothing(name: str) -> None:
    for group, template in templates(read(f"kuberay/{name}.yaml")):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, group
        assert spec["securityContext"]["runAsNonRoot"] is True, group
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            held = container["securityContext"]
            assert held["allowPrivilegeEscalation"] is False
            assert held["capabilities"] == {"drop": ["ALL"]}
            assert not held.get("privileged")
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("name", JOBS)
def test_a_cluster_is_made_for_its_job_asks_for_a_token_and_goes_when_it_is_done(name: str) -> None:
    spec = read(f"kuberay/{name}.yaml")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    # The operator looks at the version before it allows tokens, and head, workers and client must have the same.
    assert cluster["rayVersion"] == constraint("ray")
    for group in cluster.get("workerGroupSpecs", []):
        # A step sizes its pool when it begins; those that came later would stand idle.
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]


def test_gpu_workers_ask_for_a_gpu_and_the_cuda_image() -> None:
    for name in ("release", "sweep"):
        groups = {
            group["groupName"]: group
            for group in read(f"kuberay/{name}.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        }
        (container,) = groups["gpu"]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].endswith("-cuda")
        (container,) = groups["cpu"]["template"]["spec"]["containers"]
        assert not any("gpu" in name for name in container["resources"]["limits"])


# ------------------------------------------------------------------------------------------------------ what is pinned


SECRET_NAMES = re.compile(r"(SECRET|PASSWORD|TOKEN|CREDENTIAL|ACCESS_KEY)(?!_PATH)", re.I)


@pytest.mark.parametrize("name", JOBS)
def test_secrets_are_named_and_never_written(name: str) -> None:
    for group, template in templates(read(f"kuberay/{name}.yaml")):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                if SECRET_NAMES.search(variable["name"]):
                    assert set(variable) == {"name", "valueFrom"}, (group, variable)
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}


def told(text: str) -> list[str]:
    """What looks like a secret: one that is given a value, or a long random word."""
    given = re.findall(r"\b(\w*(?:SECRET|PASSWORD|TOKEN|CREDENTIAL|ACCESS_KEY)\w*)[\"']?[=:] *(\S+)", text)
    written = [f"{name}={value}" for name, value in given if not value.lstrip("\"'").startswith(("$", "?", "/run/"))]
    return written + re.findall(r"\b(?=[a-zA-Z]*\d)(?=\d*[a-zA-Z])[a-zA-Z0-9]{24,}\b", text)


def test_no_file_of_infra_holds_a_secret() -> None:
    for file in INFRA.rglob("*"):
        if file.is_file():
            assert told(file.read_text(encoding="utf-8")) == [], file
    for planted in ("AWS_SECRET_ACCESS_KEY: hunter2", "RAY_AUTH_TOKEN=abc", "4f1d0c7a9be24c3f8a1b2c3d4e5f6071"):
        assert told(planted)


def test_every_image_has_a_version() -> None:
    images = [service["image"] for service in read("compose.yaml")["services"].values()]
    images.append(read("cluster.yaml")["docker"]["image"])
    for name in JOBS:
        images += [c["image"] for _, t in templates(read(f"kuberay/{name}.yaml")) for c in t["spec"]["containers"]]
    text = (INFRA / "Containerfile").read_text(encoding="utf-8")
    (python,) = re.findall(r"^ARG PYTHON=(.+)$", text, re.M)
    images.append(f"python:{python}")
    for image in images:
        tag = image.rsplit("/", 1)[-1].partition(":")[2]
        assert re.search(r"\d+\.\d+", tag), image
        assert "latest" not in tag


# ------------------------------------------------------------------------------------------------- compose, launcher


def test_the_compose_services_answer_on_loopback_only_and_have_no_rights() -> None:
    services = read("compose.yaml")["services"]
    assert set(services) == {"store", "catalog"}
    for name, service in services.items():
        assert service["ports"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["user"].split(":")[0] not in ("0", "root")
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
        assert "network_mode" not in service
        # Named volumes, nothing of the host's.
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(read("compose.yaml")["volumes"])


def test_the_compose_store_reads_its_users_from_what_the_environment_gives() -> None:
    content = read("compose.yaml")["configs"]["s3"]["content"]
    told = json.loads(re.sub(r"\$\{(\w+):\?[^}]*\}", r"given \1", content))
    (identity,) = told["identities"]
    assert identity["credentials"] == [{"accessKey": "given S3_KEY", "secretKey": "given S3_SECRET"}]


def test_the_launcher_file_is_what_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = read("cluster.yaml")
    config = prepare_config(copy.deepcopy(given))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]
    assert given["max_workers"] == len(given["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "head_start_commands": []})


def test_the_launched_cluster_asks_for_a_token_and_shows_its_dashboard_to_itself_alone() -> None:
    config = read("cluster.yaml")
    options = config["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert not any("privileged" in option.replace("no-new-privileges", "") for option in options)
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


# -------------------------------------------------------------------------------------------------------- the image


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Containerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_the_image_is_made_in_stages_and_ends_as_an_ordinary_user() -> None:
    found = instructions()
    stages = [rest.split(" AS ") for word, rest in found if word == "FROM"]
    assert [stage[1] for stage in stages] == ["wheel", "installed", "models", "runtime"]
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]
    (user,) = [rest for word, rest in last if word == "USER"]
    assert user == "1000:1000"
    # Sources and compilers stay behind: the last stage takes what is installed, and the models.
    assert [rest.split()[0] for word, rest in last if word == "COPY"] == ["--from=installed", "--from=models"]


def test_the_image_installs_the_wheel_with_the_constraints_and_holds_no_index_or_credential() -> None:
    found = instructions()
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint /wheel/constraints.txt" in rest for rest in installs)
    assert "/wheel/*.whl" in installs[-1]
    text = " ".join(rest for _, rest in found)
    assert "--index-url" not in text
    assert "http" not in text
    assert not any(SECRET_NAMES.search(rest) for word, rest in found if word in ("ARG", "ENV"))
    assert all("type=secret,id=pip" in rest for word, rest in found if word == "RUN" and "pip " in rest)


def test_both_variants_pin_the_same_torch() -> None:
    assert constraint("torch")
    (choice,) = [rest for word, rest in instructions() if word == "RUN" and "VARIANT" in rest]
    assert "cpu)" in choice
    assert "cuda)" in choice
    assert "exit 2" in choice


def test_the_image_has_what_its_jobs_need_and_compiled() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    installs = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    # Jobs are submitted to the dashboard's server (cluster), and a sweep may search with Optuna.
    for requirement in (one for extra in ("cluster", "postgres", "s3", "sweep") for one in extras[extra]):
        ((package, extra),) = re.findall(r"^([\w-]+)(?:\[(\w+)\])?", requirement)
        (named,) = re.findall(rf"(?<![\w-]){package}(\[[\w,]+\])?(?![\w-])", installs[0])
        assert not extra or extra in named.strip("[]").split(","), requirement
    assert not any("--no-compile" in rest for rest in installs)


def test_nothing_of_the_base_image_is_mixed_with_what_was_installed() -> None:
    found = instructions()
    last = found[max(i for i, (word, _) in enumerate(found) if word == "FROM") :]
    (system,) = [rest for word, rest in last if word == "RUN"]
    assert system.startswith("rm -r /usr/local/lib/python3*/site-packages")
    assert last.index(("RUN", system)) < last.index(("COPY", "--from=installed /usr/local /usr/local"))


def test_the_image_has_the_models_asked_for_and_none_that_another_build_fetched() -> None:
    (fetch,) = [rest for word, rest in instructions() if word == "RUN" and "/fetched" in rest]
    assert "facecrowd models pull $MODELS > /tmp/pulled" in fetch
    assert "/fetched/" not in fetch


def test_the_models_of_the_image_are_known() -> None:
    from facecrowd.stages import models

    (line,) = [rest for word, rest in instructions() if word == "ARG" and rest.startswith("MODELS=")]
    named = line.partition("=")[2].strip('"').split()
    assert {"scrfd-500m", "arcface-mobilefacenet"} <= set(named) <= {row["name"] for row in models.listing()}


def test_the_build_sees_the_packages_and_nothing_else_of_the_checkout() -> None:
    lines = (INFRA / "Containerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "**"
    seen = {rule[1:] for rule in rules if rule.startswith("!")}
    assert seen == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "pipeline",
        "stages",
        "privacy",
        "jobs",
    }
    assert all((ROOT / name).exists() for name in seen)


# --------------------------------------------------------------------------------------------------------- the page


def commands() -> list[tuple[str, list[str]]]:
    """Every ``facecrowd …`` in code blocks of the page, and the entrypoints of the jobs: (where, words)."""
    page = (INFRA / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```(?:sh)?\n(.*?)```", page, re.S))
    lines = re.sub(r"\\\n\s*", " ", blocks).splitlines()
    found = [("README.md", shlex.split(line, comments=True)) for line in lines if "facecrowd " in line]
    found += [(name, shlex.split(read(f"kuberay/{name}.yaml")["spec"]["entrypoint"])) for name in JOBS]
    out = []
    for where, words in found:
        for at, word in enumerate(words):
            if word == "facecrowd" and at + 1 < len(words) and re.fullmatch(r"[a-z]+", words[at + 1]):
                out.append((where, words[at + 1 :]))
                break
    return out


@pytest.mark.parametrize("where, words", commands())
def test_every_command_and_flag_of_the_page_and_the_jobs_exists(where: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, (where, words)
        command, words = command.commands[words[0]], words[1:]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, (where, words)


def test_the_page_names_files_that_exist() -> None:
    page = (INFRA / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:tests/)?infra/[\w./-]+\w", page)):
        assert (ROOT / name).exists(), name
    for job in JOBS:
        assert f"infra/kuberay/{job}.yaml" in page
