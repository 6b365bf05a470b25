"""What the tests of the whole job share: a small set of photos, its config, and ways to run a release.

The photos are pictures of the demo's synthetic people, 6 people with 2 pictures each. Most tests work the steps off in
this process; ``tests/pipeline/test_ray_data.py`` shows that Ray makes the same files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facecrowd.pipeline import config as configs
from facecrowd.pipeline import ray_data
from facecrowd.pipeline import release as releases
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.schema import WORKSPACE
from facecrowd.pipeline.storage import NAMESPACE, Workspace
from facecrowd.stages import models

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
KEY = bytes(range(32))
ROWS = {"photos": 12, "faces": 12, "plan": 12, "members": 12, "surrogates": 2, "rendered": 12, "link": 12}
"""Rows of each Iceberg table of the release ``released``."""


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread, as in a worker."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos beside the checkout, or a skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real photos at hand: {SHARED / 'data'} is not there")
    return SHARED


@pytest.fixture(scope="session")
def model_folder() -> str | None:
    """Where the detector and the recogniser are, for ``detect.models``; a skip where they cannot be had."""
    folder = str(SHARED / "models" / "insightface") if (SHARED / "models" / "insightface").is_dir() else None
    try:
        for name in ("scrfd-500m", "arcface-mobilefacenet"):
            models.path(name, folder=folder)
    except models.Unobtainable as error:
        pytest.skip(f"the models cannot be had here: {error}")
    return folder


@pytest.fixture(scope="session")
def people() -> list[Path]:
    """The folders of the demo's synthetic people."""
    found = sorted(path for path in (ROOT / "jobs" / "faces").glob("*") if path.is_dir())
    assert len(found) >= 6
    return found


@pytest.fixture(scope="session")
def photos(people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 people with 2 pictures each, as PERSON/PICTURE.jpg; not to be written to."""
    folder = tmp_path_factory.mktemp("input") / "photos"
    for person in people[:6]:
        (folder / person.name).mkdir(parents=True)
        for picture in sorted(person.glob("*.jpg"))[:2]:
            shutil.copy(picture, folder / person.name / picture.name)
    return folder


@pytest.fixture(scope="session")
def write_predictor() -> Callable[..., Path]:
    """``write_predictor(file, tensors, **about)``: an attribute predictor of these weights, with this in its metadata,
    and a calibration where they have none."""
    import torch
    from safetensors.torch import save_file

    from facecrowd.stages.attributes import ATTRIBUTES

    calibration = {"temperature": torch.ones(40), "prior": torch.linspace(0.2, 0.8, 40)}
    card = {"kind": "attribute predictor", "attributes": ATTRIBUTES, "splits": ["own people"], "subjects": 5}

    def write(file: Path, tensors: dict[str, Any], **about: Any) -> Path:
        save_file(calibration | tensors, str(file), metadata={"facecrowd": json.dumps(card | about)})
        return file

    return write


@pytest.fixture(scope="session")
def draw_predictor(photos: Path, write_predictor: Callable[..., Path]) -> Callable[..., Path]:
    """``draw_predictor(file, seed=1, temperature=1.0, **about)``: a GoogLeNet at 64 px that was never trained but knows
    the scale of its activations. It is the surer of what it says the lower the temperature."""
    import torch

    from facecrowd.stages.attributes import pictures
    from facecrowd.stages.decode import decode
    from facecrowd.stages.networks.googlenet import GoogLeNet

    def draw(file: Path, seed: int = 1, temperature: float = 1.0, **about: Any) -> Path:
        torch.manual_seed(seed)
        network = GoogLeNet().train()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network(pictures([decode(p.read_bytes()) for p in sorted(photos.rglob("*.jpg"))[:6]], 64))
        state = {f"googlenet.{k}": v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
        state["temperature"] = torch.full((40,), temperature)
        return write_predictor(file, state, **{"backbone": "googlenet", "side": 64, **about})

    return draw


@pytest.fixture(scope="session")
def settings(photos: Path, model_folder: str | None) -> Callable[..., configs.ReleaseConfig]:
    """``settings(output, **{"policy.k": 2})``: the config of a small release with many micro-batches. Classes show the
    mean of pixels, which takes no generator: ``tests/pipeline/test_latent.py`` has the generated faces."""

    def make(output: Path | str, /, **changes: Any) -> configs.ReleaseConfig:
        values: dict[str, Any] = {
            "input.path": str(photos),
            "release.path": str(output),
            "detect.models": model_folder,
            "policy.k": 3,
            "method.surrogate": "average",
            "compute.micro_batch": 2,
            "compute.cpus": 2,
        }
        return configs.load(None, {**values, **changes})

    return make


@pytest.fixture(scope="session")
def flags(photos: Path, model_folder: str | None) -> Callable[..., list[str]]:
    """``flags(output, …)``: the same as arguments of ``facecrowd release``."""

    def make(output: Path | str, *more: str) -> list[str]:
        where = ["--models", model_folder] if model_folder else []
        small = ["--k", "3", "--surrogate", "average", "--micro-batch", "2", "--cpus", "2"]
        return ["release", "--input", str(photos), "--output", str(output), *where, *small, *more]

    return make


def loop(step: ray_data.Step, parts: Sequence[int], progress: Progress) -> None:
    """The micro-batches one after the other in this process."""
    for stage in step.stages:
        stage.setup()
    for part in parts:
        step.sink(part, ray_data.apply(step.stages, step.source(part), step.at_once))


@pytest.fixture(scope="session")
def in_process() -> releases.Execute:
    return loop


@pytest.fixture(scope="session")
def make_release() -> Callable[..., releases.Outcome]:
    """``make_release(config)``: a release with the tests' run key, without Ray unless ``execute=None`` is given."""

    def make(
        config: configs.ReleaseConfig, key: bytes | None = KEY, execute: releases.Execute | None = loop
    ) -> releases.Outcome:
        if key is not None:
            give_key(config.workspace_path, key)
        return releases.release(releases.prepare(config), Progress(quiet=True), execute)

    return make


@pytest.fixture(scope="session")
def given_key() -> Callable[..., None]:
    """``given_key(workspace)``: put a run key into a workspace before its first run."""
    return give_key


def give_key(workspace: Path | str, key: bytes = KEY) -> None:
    folder = Path(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run.key").exists():
        (folder / "run.key").write_text(key.hex())


@pytest.fixture(scope="session")
def released(
    settings: Callable[..., configs.ReleaseConfig],
    make_release: Callable[..., releases.Outcome],
    tmp_path_factory: pytest.TempPathFactory,
) -> releases.Outcome:
    """A finished release of ``photos`` by k-same with k = 3; not to be written to."""
    return make_release(settings(tmp_path_factory.mktemp("released") / "release"))


@pytest.fixture(scope="session")
def tree() -> Callable[[Path | str], dict[str, bytes]]:
    """``tree(folder)``: every file below a folder with its bytes."""

    def read(folder: Path | str) -> dict[str, bytes]:
        root = Path(folder)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return read


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``command("release", …)``: the command line in a process of its own."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "facecrowd.jobs.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray session on 2 CPUs for the whole test run."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    with ray_data.session("local", cpus=2):
        yield


# ------------------------------------------------------------------------------------ what a disturbed job must end as


def count_rows(catalog: Any) -> dict[str, Counter[str]]:
    """For every Iceberg table of a catalog: run → rows. Checks that a run is one snapshot."""
    out = {}
    for manifest in WORKSPACE:
        if not catalog.table_exists((NAMESPACE, manifest.name)):
            continue
        table = catalog.load_table((NAMESPACE, manifest.name))
        out[manifest.name] = Counter(table.scan(selected_fields=("run",)).to_arrow()["run"].to_pylist())
        runs = [snapshot.summary.additional_properties["facecrowd.run"] for snapshot in table.snapshots()]
        assert sorted(runs) == sorted(out[manifest.name])
    return out


@pytest.fixture(scope="session")
def rows_per_run() -> Callable[[Any], dict[str, Counter[str]]]:
    return count_rows


@pytest.fixture(scope="session")
def rows_of_each_table() -> dict[str, int]:
    return ROWS


@pytest.fixture
def assert_as_undisturbed(
    released: releases.Outcome, tree: Callable[[Path | str], dict[str, bytes]]
) -> Callable[[configs.ReleaseConfig], None]:
    """``assert_as_undisturbed(config)``: the same release as ``released``, and every row exactly once."""

    def check(config: configs.ReleaseConfig) -> None:
        assert tree(str(config.release.path)) == tree(released.release.root)
        found = count_rows(Workspace(config.workspace_path).catalog())
        assert {name: list(runs.values()) for name, runs in found.items()} == {n: [rows] for n, rows in ROWS.items()}

    return check


class Marked:
    """Processes that are found again by a mark in their environment, however they were started."""

    def __init__(self) -> None:
        self.mark = f"FACECROWD_TEST_JOB={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        # Ray's workers give way to everything else; on a busy machine they would never come to their turn.
        self.environment = {**os.environ, "RAY_worker_niceness": "0", name: value}

    def processes(self, of: str = "") -> dict[int, str]:
        """pid → command line of everything with the mark, or of what has these words in its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return {pid: line for pid, line in found.items() if of in line}

    def kill(self, of: str = "") -> int:
        """SIGKILL to those; returns how many there were."""
        found = self.processes(of)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def end(self) -> None:
        """Nothing is left running."""
        for _ in range(100):
            if not self.kill():
                break
            time.sleep(0.05)


class Job(Marked):
    """``facecrowd release`` in a process of its own, with the processes that Ray starts for it."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        super().__init__()
        self.log = log
        with log.open("w") as out:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "facecrowd.jobs.cli", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def wait_for(self, condition: Callable[[], bool], seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.driver.poll() is None, f"ended by itself: {self.log.read_text()}"
            assert time.monotonic() < end, f"waited in vain: {self.log.read_text()}"
            time.sleep(0.01)

    def kill_driver(self) -> None:
        self.driver.kill()
        self.driver.wait()

    def kill_worker(self) -> bool:
        """Kill an actor that works on micro-batches, where there is one right now."""
        workers = [pid for pid, line in self.processes("ray::").items() if "_Group" in line]
        if workers:
            os.kill(workers[0], signal.SIGKILL)
        return bool(workers)

    def kill_raylet(self) -> bool:
        """Kill Ray's own process of this node, where there is one right now."""
        return self.kill("raylet/raylet ") > 0

    def end(self) -> None:
        super().end()
        self.driver.wait()


@pytest.fixture
def marked() -> Iterator[Callable[[], Marked]]:
    """``marked()``: a mark for processes, all of which end with the test."""
    marks: list[Marked] = []

    def make() -> Marked:
        marks.append(Marked())
        return marks[-1]

    yield make
    for mark in marks:
        mark.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Job]]:
    """``start(flags(output))``: a job of the command line that is left running; ended with the test."""
    jobs: list[Job] = []

    def run(arguments: list[str]) -> Job:
        jobs.append(Job(arguments, tmp_path / f"job-{len(jobs)}.log"))
        return jobs[-1]

    yield run
    for job in jobs:
        job.end()


# -------------------------------------------------------------------------------------------------- an object store


KEY_ID, SECRET = "loopback-key-id", "loopback-secret-nobody-else-uses"


@dataclass(frozen=True)
class Store:
    """The server and what a process needs to use it."""

    environment: dict[str, str]
    client: Any
    catalog: dict[str, str]

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Every object below ``prefix`` of the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="private", Prefix=f"{prefix}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key[len(prefix) + 1 :]: self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket="private", Key=key)["Body"].read()

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Use the store from this process."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
            patch.setenv(name, self.environment[name])

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="private", Key=key, Body=data)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An S3 server on loopback, with the bucket ``private``."""
    pytest.importorskip("moto", reason="the S3 server of the tests is moto's")
    pytest.importorskip("s3fs")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("s3")
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        credentials = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.1)
        client = boto3.client("s3", endpoint_url=endpoint, **credentials)
        client.create_bucket(Bucket="private")
        catalog = "PYICEBERG_CATALOG__LOOPBACK__"
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            f"{catalog}TYPE": "sql",
            f"{catalog}URI": f"sqlite:///{folder}/catalog.db",
            f"{catalog}WAREHOUSE": "s3://private/warehouse",
            f"{catalog}S3__ENDPOINT": endpoint,
            f"{catalog}S3__ACCESS_KEY_ID": KEY_ID,
            f"{catalog}S3__SECRET_ACCESS_KEY": SECRET,
            f"{catalog}S3__REGION": "us-east-1",
        }
        prefix = len(catalog)
        properties = {
            k[prefix:].lower().replace("__", ".").replace("_", "-"): v
            for k, v in environment.items()
            if k.startswith(catalog)
        }
        yield Store(environment, client, properties)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def bucket(store: Store, photos: Path) -> Store:
    """The photos in the bucket, under ``photos/``."""
    for file in photos.rglob("*.jpg"):
        store.put(f"photos/{file.relative_to(photos)}", file.read_bytes())
    return store
