"""The page of ``facecrowd bench scale``: how each stage grows, and what 100 million images would take.

Exponents are slopes between two sizes on logarithmic scales, of CPU seconds. The outlook takes what one image of the
largest size took, adds what real networks take for one, and multiplies; only ``same person`` grows with its square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from facecrowd.jobs.bench_scale import ORDER, PHOTOS, REAL_WIDTH, SIDE, K
from facecrowd.pipeline.audit import PROBES

Figures = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------ growth

LINEAR, COUNTS = 1.15, 0.01
"""A stage grows faster than the images from this exponent on; one that takes a smaller share of all is not judged."""

WHY = {
    "same person": "compares everybody with everybody: the square of the people. `--same-person 1` leaves it out, "
    "where the names of the input are known to be one per person.",
    "classes": "works in blocks of at most 4,096 people, every pair of a block: a square up to there, linear beyond.",
    "rank 1": "attacks at most 20,000 faces: a square up to there, beyond it linear in the gallery.",
    "write": "compresses the copies of a class's face that lie in one shard to one; the more shards, the fewer do. "
    "Where none share one, it is linear.",
    "look-up": "reads more parts of surrogates per micro-batch the more there are, until everybody's class lies in "
    "another part; beyond it is linear.",
}


def exponents(sizes: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """b where seconds go with size^b, between each size and the next; nan where nothing was taken."""
    pairs = zip(sizes, sizes[1:], seconds, seconds[1:], strict=False)
    return [
        math.log(after / before) / math.log(large / small) if before > 0 and after > 0 else math.nan
        for small, large, before, after in pairs
    ]


def growth(figures: Figures) -> dict[str, list[float]]:
    """The exponents of the CPU seconds of each stage, and of ``all``, between the sizes that were measured."""
    found = list(figures["images"].values())
    sizes = [one["images"] for one in found]
    stages = {name: [_stage(one, name, "cpu_s") for one in found] for name in ORDER if name in found[-1]["stages"]}
    return {name: exponents(sizes, cpu) for name, cpu in {**stages, "all": [one["cpu_s"] for one in found]}.items()}


def steeper(figures: Figures) -> list[str]:
    """The stages that count and, between the two largest sizes, grow faster than the images."""
    if len(figures["images"]) < 2:
        return []
    largest, grown = list(figures["images"].values())[-1], growth(figures)
    counted = [name for name, row in largest["stages"].items() if row["cpu_s"] >= COUNTS * largest["cpu_s"]]
    return [name for name in counted if grown[name][-1] >= LINEAR]


def _stage(one: Figures, name: str, what: str) -> float:
    return float(one["stages"].get(name, {}).get(what, 0.0))


# ----------------------------------------------------------------------------------------------------------- outlook

NODE_CORES, DAY_S, AHEAD = 32, 86_400, 10**8
"""A node of the outlook, the time it has, and the images."""
PARALLEL = ("embed", "surrogates", "look-up")
"""The stages that Ray spreads over nodes; the others are the driver's alone."""
EYES = ("read", "detect", "align", "embed", "crop")
"""What a release does to a photo before it is planned, crop being its encoding."""
PER_CLASS = K * PHOTOS
ELSEWHERE: tuple[tuple[str, float, str], ...] = (
    # What a method takes beside, per image: CPU seconds, and where they were measured.
    (
        "k-same, generated faces",
        2 * (0.008 + (0.10 - K * 0.008) / PER_CLASS),
        "[generation](../docs/generation.md#speed): 0.008 s to encode a face, 0.06 s to generate one for a class; two "
        "cores, both counted",
    ),
    (
        "k-same with TIP-IM, one mask per class",
        20.0 / PER_CLASS,
        "[perturbation](../docs/perturbation.md#speed): 0.05 faces a second on one thread",
    ),
    ("DeepBlur, 10 steps", 5.0, "[generation](../docs/generation.md): 5 CPU seconds a face"),
    ("TIP-IM on every face", 20.0, "as above"),
)


def outlook(figures: Figures, images: int = AHEAD) -> Figures:
    """What ``images`` would take, from the largest size: core-seconds an image, hours and nodes, memory, bytes."""
    sizes = list(figures["images"].values())
    largest = sizes[-1]
    n, stages = largest["images"], largest["stages"]
    kernels = figures["kernels"].get("cpu_ms", {})
    own = sum(_stage(largest, name, "cpu_s") for name in PARALLEL) / n
    eyes = sum(kernels.get(name, 0.0) for name in EYES) / 1e3
    shown = (kernels.get("average", 0.0) + (kernels.get("encode", 0.0) + kernels.get("judge", 0.0)) / PER_CLASS) / 1e3
    each = own + eyes + shown
    methods = {"k-same, averages": each, **{name: each + more for name, more, _ in ELSEWHERE}}
    # Products of embeddings take as much longer as these are.
    longer = REAL_WIDTH / figures["settings"]["width"]
    alone = {
        name: row["cpu_s"] * images / n * (longer if name in ("same person", "rank 1") else 1)
        for name, row in stages.items()
        if name not in PARALLEL
    }
    alone["same person"] = alone.get("same person", 0.0) * images / n
    small: Figures = sizes[-2] if len(sizes) > 1 else {"images": 0, "peak_mb": {"driver": 0.0}}
    memory = (largest["peak_mb"]["driver"] - small["peak_mb"]["driver"]) / (n - small["images"])
    pixels = {name: figures["kernels"].get(f"{name}_kb", 0.0) * 1e3 for name in ("crop", "rendered")}
    return {
        "images": images,
        "core_s": {"own": own, "eyes": eyes, "shown": shown},
        "methods": {
            name: {
                "core_s": seconds,
                "core_hours": seconds * images / 3600,
                "nodes": math.ceil(seconds * images / (NODE_CORES * DAY_S)),
            }
            for name, seconds in methods.items()
        },
        "driver_hours": {name: seconds / 3600 for name, seconds in alone.items()},
        "driver_mb_per_million": memory * 1e6,
        "piece_hours": sum(row["cpu_s"] for name, row in stages.items() if name not in PARALLEL) / 3600,
        "kb_per_image": {
            "workspace": largest["workspace_mb"] * 1e3 / n,
            "release": largest["release_mb"] * 1e3 / n,
            "read": sum(row["read_mb"] for row in stages.values()) * 1e3 / n,
            "written": sum(row["written_mb"] for row in stages.values()) * 1e3 / n,
            # At the size of real crops: one in faces, one in rendered; one in the release.
            "workspace_real": largest["workspace_mb"] * 1e3 / n + sum(pixels.values()) / 1e3,
            "release_real": largest["release_mb"] * 1e3 / n + pixels["rendered"] / 1e3,
        },
    }


# -------------------------------------------------------------------------------------------------------------- page


def markdown(figures: Figures) -> str:
    """The page of a file of figures."""
    machine = figures["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    parts = [
        "# Scale, measured",
        "A command makes this page, from what it measured:",
        "\n".join(f"    {line}" for line in _command(figures).splitlines()),
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']:g} GiB; {versions}. Other jobs "
        f"shared the cores (load before: {machine['load_before']:g}). So **CPU seconds** are compared (user + system "
        "of all processes), which a busy machine also lengthens a little; wall seconds only stand beside.",
    ]
    if figures["images"]:
        parts += [*_images_page(figures), *_stream_page(figures)]
    parts += _rows_page(figures)
    if figures["images"]:
        parts += _outlook_page(figures)
    return "\n\n".join(parts) + "\n"


NONE = "''"
"""An empty list, as a shell takes it."""


def _command(figures: Figures) -> str:
    given = figures["settings"]
    images, rows = (",".join(figures[name]) for name in ("images", "rows"))
    stream = max(map(int, figures["stream"]), default=0)
    return (
        f"facecrowd bench scale --images {images or NONE} --rows {rows or NONE} --stream {stream} \\\n"
        f"  --micro-batch {given['micro_batch']} --width {given['width']} --store {given['store'] >> 20} "
        "--json scale.json --markdown infra/SCALE.md"
    )


def _images_page(figures: Figures) -> list[str]:
    found, grown, width = list(figures["images"].values()), growth(figures), figures["settings"]["width"]
    largest = found[-1]
    attacked = PROBES // PHOTOS
    by_chance = 1.96 * math.sqrt((1 / K) * (1 - 1 / K) / attacked)
    heads = [f"{one['images']:,}" for one in found]
    stages = [["stage", *(f"{head}, CPU s" for head in heads), "wall s", "exponents", ""]]
    for name in grown:
        if name == "all":
            cells = [one["cpu_s"] for one in found]
            stages.append(["**all**", *map(_number, cells), _number(largest["wall_s"]), _slopes(grown[name]), ""])
        else:
            cells = [_stage(one, name, "cpu_s") for one in found]
            wall = _number(_stage(largest, name, "wall_s"))
            stages.append([f"`{name}`", *map(_number, cells), wall, _slopes(grown[name]), ORDER[name]])
    kinds: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("people", lambda one: one["people"]),
        ("classes", lambda one: one["classes"]),
        (f"rank 1 against all originals (1/k = {1 / K:g})", lambda one: one["rank1"]["originals"]),
        ("driver at its peak, MB", lambda one: one["peak_mb"]["driver"]),
        ("largest worker, MB", lambda one: one["peak_mb"]["worker"]),
        ("private memory of all processes, MB", lambda one: one["peak_mb"]["private"]),
        ("object store held at most, MB", lambda one: one["store_mb"]),
        ("spilled to disk, MB", lambda one: one["spilled_mb"]),
        ("read, MB", lambda one: sum(row["read_mb"] for row in one["stages"].values())),
        ("written, MB", lambda one: sum(row["written_mb"] for row in one["stages"].values())),
        ("workspace, MB", lambda one: one["workspace_mb"]),
        ("release, MB", lambda one: one["release_mb"]),
    )
    also = [["", *heads], *([name, *(_number(value(one)) for one in found)] for name, value in kinds)]
    steep = [f"- `{name}` {WHY.get(name, 'grows faster than the images.')}" for name in steeper(figures)]
    return [
        "## A release as it grows",
        f"One whole release a size (k-same, k = {K}, averages, {PHOTOS} photos a person, {SIDE} px) by the project's "
        "own listing, Ray Data steps, planner, manifests, commits, publication, audit and leak scan. Only networks are "
        f"left out: photos are drawn from a seed where they would be read, and a random projection of their pixels to "
        f"{width} numbers stands for detector and recogniser. What real ones add is below, under *100 million images*.",
        _grid(stages),
        f"Wall seconds are of {heads[-1]}. Exponents are between one size and the next: 1 is linear; below 1, what "
        "does not grow (Ray's workers take some 5 CPU seconds a step to start) still counts.",
        _grid(also),
        "Read and written is what went through system calls, from cache or disk; Python's modules count too. Rank 1 is "
        f"of {attacked:,} people, drawn where there are more: chance alone moves it by ± {by_chance:.3f} (95 %).",
        "**Not linear**, of the stages that take 1 % of the time, between the two largest sizes:" if steep else
        "Every stage that takes 1 % of the time is linear (at most 1.15) between the two largest sizes.",
        *(["\n".join(steep)] if steep else []),
    ]  # fmt: skip


def _stream_page(figures: Figures) -> list[str]:
    found, given = [figures["stream"][key] for key in sorted(figures["stream"], key=int)], figures["settings"]
    if not found:
        return []
    kinds: tuple[tuple[str, Callable[[Figures], str]], ...] = (
        ("through the object store, MB", lambda one: _number(one["through_store_mb"])),
        ("its size, MB", lambda one: _number(one["store_size_mb"])),
        ("it held at most, MB", lambda one: _number(one["store_mb"])),
        ("spilled to disk, MB", lambda one: _number(one["spilled_mb"])),
        ("largest worker, first and second half, MB", lambda one: ", ".join(map(_number, one["worker_mb_by_half"]))),
        ("driver, first and second half, MB", lambda one: ", ".join(map(_number, one["driver_mb_by_half"]))),
        ("private memory of all processes, MB", lambda one: _number(one["peak_mb"]["private"])),
        ("CPU s", lambda one: _number(one["cpu_s"])),
        ("wall s", lambda one: _number(one["wall_s"])),
    )
    table = [["", *(f"{one['images']:,} faces" for one in found)]]
    table += [[name, *(value(one) for one in found)] for name, value in kinds]
    return [
        "## Backpressure",
        "On CPUs a micro-batch stays in one worker from source to sink, and the object store carries its number alone. "
        "Where stages need different hardware, faces travel between two pools of workers. So they do here: one pool "
        f"draws and embeds them, the other waits {given['slow']:g} s over each micro-batch of {given['micro_batch']} "
        "and writes it, so that the first would run far ahead. Ray Data holds it back: nothing is spilled, and memory "
        "does not grow with the faces. A release says after each step what its workers and the store held.",
        _grid(table),
    ]


def _rows_page(figures: Figures) -> list[str]:
    sizes = list(figures["rows"])
    if not sizes:
        return []
    table = [["", *(f"{int(size):,} rows" for size in sizes), "exponents"]]
    for what in [run["what"] for run in figures["rows"][sizes[-1]]["runs"]]:
        runs: list[Figures] = [
            next((r for r in figures["rows"][size]["runs"] if r["what"] == what), {}) for size in sizes
        ]
        cells = [
            f"{run['cpu_s']:.1f} ({run['seconds']:.1f}) s, {run['peak_mb'] / 1024:.2f} GiB"
            if "seconds" in run
            else run.get("failed", "–")
            for run in runs
        ]
        table.append([what, *cells, _slopes(exponents(list(map(int, sizes)), [r.get("cpu_s", 0.0) for r in runs]))])
    table.append(["file", *(f"{figures['rows'][size]['file_mb']:,.0f} MB" for size in sizes), ""])
    return [
        "## A table as it grows",
        "37 quasi-identifiers, 3 sensitive attributes, 50 rows a person, as `facecrowd bench table` makes and measures "
        "them, each in a process of its own: `floor` reads, packs and sorts, and nothing that measures k can do less; "
        "`measure` is k, l, entropy l and t; `plan` counts one vector a person and plans k = 10. CPU seconds, Python's "
        "start among them; in brackets wall seconds without it.",
        _grid(table),
    ]


def _outlook_page(figures: Figures) -> list[str]:
    ahead, kernels = outlook(figures), figures["kernels"]
    each, kb, hours = ahead["core_s"], ahead["kb_per_image"], ahead["driver_hours"]
    piece = list(figures["images"].values())[-1]["images"]
    pieces = math.ceil(ahead["images"] / piece)
    units = [["per image", "core-seconds", "from"]]
    units.append(["facecrowd's own work on Ray", f"{each['own']:.5f}", f"{piece:,} images, above"])
    if kernels:
        ms = kernels["cpu_ms"]
        known = ", ".join(f"{name} {ms[name]:.2f}" for name in EYES)
        measured = f"{kernels['photos']} photos of {kernels['size']} on one thread; ms"
        units.append(
            [f"{kernels['detector']}, {kernels['recogniser']}", f"{each['eyes']:.5f}", f"{measured}: {known}"],
        )
        known = f"average {ms['average']:.2f} a face, judge {ms['judge']:.2f} a class"
        units.append(["averages of 256 px, judged", f"{each['shown']:.5f}", f"the same; ms: {known}"])
    units += [[name, f"{seconds:.5f}", source] for name, seconds, source in ELSEWHERE]
    methods = [["all in all", "core-seconds an image", "core-hours", f"nodes of {NODE_CORES} cores for a day"]]
    methods += [
        [name, f"{row['core_s']:.4f}", f"{row['core_hours']:,.0f}", f"{row['nodes']:,}"]
        for name, row in ahead["methods"].items()
    ]
    linear = sum(value for name, value in hours.items() if name != "same person")
    gigabytes = ahead["driver_mb_per_million"] * ahead["images"] / 1e9
    longer = (REAL_WIDTH - figures["settings"]["width"]) * 4 * ahead["images"] / 1e9
    drivers = max(1, math.ceil(pieces * ahead["piece_hours"] / 24))
    return [
        f"## {ahead['images'] // 10**6} million images",
        _grid(units),
        f"On disk an image took {kb['workspace']:.1f} kB of workspace and {kb['release']:.1f} kB of release at {SIDE} "
        f"px; with crops of 256 px it is {kb['workspace_real']:.0f} and {kb['release_real']:.0f} kB. {kb['read']:.1f} "
        f"kB were read and {kb['written']:.1f} kB written for it. {ahead['images']:,} images then take, on Ray:",
        _grid(methods),
        f"The driver's own work does not spread over nodes. It would be {linear:,.0f} hours of one core in proportion "
        f"({hours.get('rank 1', 0.0):,.0f} of them rank 1, at {REAL_WIDTH} numbers an embedding), and "
        f"{hours.get('same person', 0.0):,.0f} hours for `same person`, which goes with the square of the people. Its "
        f"memory grows by {ahead['driver_mb_per_million']:,.0f} MB a million images: {gigabytes:,.0f} GB for all, and "
        f"{longer:,.0f} GB more for each copy of the embeddings at {REAL_WIDTH} numbers.",
        f"**So one driver is the limit, not the nodes.** Cut the set by person into {pieces:,} releases of {piece:,} "
        f"images: k, l and t hold in each, nobody is in two, and all of it is linear. Each keeps a driver busy for "
        f"{_number(ahead['piece_hours'])} hours; {drivers} of them make all in a day, beside the nodes above. What is "
        "lost: people are not compared across pieces, so one who is filed under two names in two pieces is not found, "
        "and a class is of look-alikes of its piece.",
    ]


def _slopes(values: Sequence[float]) -> str:
    return ", ".join("–" if math.isnan(value) else f"{value:.2f}" for value in values) or "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _grid(cells: Sequence[Sequence[str]]) -> str:
    head, *body = cells
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))
