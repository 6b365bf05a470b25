"""Training that can be killed: one loop, in plain torch or on Ray Train, from the last checkpoint on.

A ``Task`` knows how to take step number i; whatever is random in a step comes from the task's seed and i, so a run that
was killed and resumed ends with the same bits as one that never was. Where ``torch.distributed`` is up (Ray Train,
torchrun), each worker takes its share of a batch and ``average`` makes the gradients one.

    train(make, folder)                       plain torch, here; Ray need not be installed
    train_on_ray(make, folder, workers=4)     Ray Train (TorchTrainer), on a cluster
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as distributed
from torch import nn

from facecrowd.pipeline.errors import ConfigError, UnfinishedError
from facecrowd.pipeline.ray_data import root_cause

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
RUN = "ray-"
"""Beginning of the names of Ray's folders; the rest is what is trained."""
OTHER = "{folder}: holds a training of other data or settings; give another --work folder, or remove it"
UNFINISHED = (
    "{folder}: holds a training that Ray workers have not finished; give --workers to go on, or another --work folder"
)


class Task(Protocol):
    """What is trained. ``identity`` names all that decides the outcome; a checkpoint of another is refused."""

    identity: str
    steps: int

    def step(self, number: int) -> dict[str, float]:
        """Take one optimiser step and give its figures. The same number on the same state does the same."""

    def measure(self) -> dict[str, float]:
        """Figures on held-out data."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain numbers from which ``restore`` goes on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""


T = TypeVar("T", bound=Task)
Report = Callable[[int, dict[str, float], dict[str, Any]], None]


def loop(task: Task, start: int, report: Report, every: int, until: int | None = None) -> None:
    """Steps ``start`` to the task's last (or ``until``); ``report`` gets the figures and, every so often, the state."""
    last = task.steps if until is None else min(until, task.steps)
    sums: dict[str, float] = {}
    since = time.monotonic()
    for number in range(start, last):
        for name, value in task.step(number).items():
            sums[name] = sums.get(name, 0.0) + value
        done = number + 1
        if done % every == 0 or done == last:
            count = (done - 1) % every + 1 if done % every else every
            figures = {name: value / min(count, done - start) for name, value in sums.items()}
            figures |= task.measure() | {"steps_per_s": min(count, done - start) / (time.monotonic() - since)}
            report(done, figures, {"identity": task.identity, "step": done, "task": task.state()})
            sums, since = {}, time.monotonic()


def train(
    make: Callable[[], T],
    folder: Path,
    every: int = 100,
    until: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> T:
    """Train in this process; ``folder`` keeps the checkpoint and ``log.jsonl``, one line of figures per report.

    Raises ConfigError when the folder holds a checkpoint of other data or settings, or one of Ray Train's alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task, start = make(), 0
    if not (folder / CHECKPOINT).exists() and any(folder.glob(f"{RUN}*")):
        raise ConfigError(UNFINISHED.format(folder=folder))
    if (folder / CHECKPOINT).exists():
        start = _take_up(task, _read(folder / CHECKPOINT), folder)
        say(f"resuming at step {start} of {task.steps}")
    _cut_log(folder / LOG, start)

    def report(done: int, figures: dict[str, float], state: dict[str, Any]) -> None:
        _log(folder / LOG, done, figures)
        write(state, folder / CHECKPOINT)
        say(_told(done, task, figures))

    loop(task, start, report, every, until)
    return task


def train_on_ray(
    make: Callable[[], T],
    folder: Path,
    every: int = 100,
    workers: int = 1,
    gpu: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> T:
    """The same by Ray Train: ``workers`` processes, restarted from the last checkpoint when one dies.

    ``folder`` must be reachable from every node when there are several. It ends with the checkpoint that ``train``
    would have written, and one that ``train`` left is gone on from. Several workers normalise batches each by its own
    share, so their weights differ from one worker's.

    Raises ConfigError as ``train`` does, and when the cluster has fewer CPUs than workers; UnfinishedError when the
    training keeps failing.
    """
    import ray
    import ray.train as rt
    from ray.train.torch import TorchTrainer

    if workers > (cpus := int(ray.cluster_resources().get("CPU", 0))):
        raise ConfigError(f"--workers {workers}: there are only {cpus} CPUs to run them on")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    task = make()
    name = f"{RUN}{task.identity[:16]}"
    if (folder / CHECKPOINT).exists() and _take_up(task, _read(folder / CHECKPOINT), folder) >= task.steps:
        return task
    if any(other.name != name for other in folder.glob(f"{RUN}*")):
        raise ConfigError(OTHER.format(folder=folder))

    def worker() -> None:
        task, start = make(), 0
        found = rt.get_checkpoint()
        if found is not None:
            with found.as_directory() as place:
                start = _take_up(task, _read(Path(place) / CHECKPOINT), folder)
        elif (folder / CHECKPOINT).exists():
            start = _take_up(task, _read(folder / CHECKPOINT), folder)

        if rt.get_context().get_world_rank() == 0:
            _cut_log(folder / LOG, start)

        def report(done: int, figures: dict[str, float], state: dict[str, Any]) -> None:
            row = {"step": done, **figures}
            if rt.get_context().get_world_rank() != 0:
                rt.report(row)
                return
            _log(folder / LOG, done, figures)
            with tempfile.TemporaryDirectory() as place:
                write(state, Path(place) / CHECKPOINT)
                rt.report(row, checkpoint=rt.Checkpoint.from_directory(place))

        loop(task, start, report, every)

    # A run of this name that was killed goes on from its last checkpoint.
    trainer = TorchTrainer(
        worker,
        scaling_config=rt.ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=rt.RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=rt.FailureConfig(max_failures=3),
            checkpoint_config=rt.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        result = trainer.fit()
    except rt.TrainingFailedError as error:
        what = (str(root_cause(error)).strip().splitlines() or ["no message"])[-1]
        raise UnfinishedError(f"{folder}: the training failed ({what}); start it again to go on") from error
    if result.checkpoint is None:
        raise UnfinishedError(f"{folder}: the training ended without a checkpoint; start it again")
    with result.checkpoint.as_directory() as place:
        state = _read(Path(place) / CHECKPOINT)
    step = _take_up(task, state, folder)
    write(state, folder / CHECKPOINT)
    say(_told(step, task, result.metrics or {}))
    return task


def run(make: Callable[[], T], folder: Path, every: int, workers: int, say: Callable[[str], None]) -> T:
    """By ``workers`` of Ray Train in a session of their own, or with none in this process; raises as these do."""
    if workers:
        from facecrowd.pipeline.ray_data import session

        with session():
            train_on_ray(make, folder, every, workers, torch.cuda.is_available(), say)
    return train(make, folder, every, say=say)


def _read(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return state


def _told(done: int, task: Task, figures: dict[str, float]) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "step")
    return f"step {done} of {task.steps}: {values}"


def _take_up(task: Task, state: dict[str, Any], folder: Path) -> int:
    if state["identity"] != task.identity:
        raise ConfigError(OTHER.format(folder=folder))
    task.restore(state["task"])
    return int(state["step"])


def _log(log: Path, step: int, figures: dict[str, float]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def _cut_log(log: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps are taken again. A kill may have torn the last line."""
    if log.exists():
        whole = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        log.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write(state: dict[str, Any], file: Path) -> None:
    """Write a checkpoint in one atomic step."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def generator(seed: int, number: int) -> torch.Generator:
    """The randomness of one step."""
    # Torch's generator on a CPU heeds 32 bits of its seed; this keeps the steps of different seeds far apart there.
    return torch.Generator().manual_seed((seed * 2_654_435_761 + number) % 2**32)


def share(batch: torch.Tensor) -> torch.Tensor:
    """This worker's part of a batch's first axis; all of it where there is one worker."""
    if not distributed.is_initialized():
        return batch
    return batch[distributed.get_rank() :: distributed.get_world_size()]


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Make the gradients of all workers one."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def device() -> torch.device:
    """The accelerator where there is one; Ray Train tells each worker its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
