"""``facecrowd forget``: destroy a workspace, so that nothing leads from its releases back to their sources.

The run key goes first: without it neither names nor draws can be made again, whatever else is found later. Then the
catalog that others share gives up the rows of this workspace, and then all files go. Each step may be killed and made
again; a mark that lies in the workspace until the end says that it is being forgotten.
"""

from __future__ import annotations

import fcntl
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facecrowd.pipeline.errors import ConfigError, StoreError, WorkspaceError
from facecrowd.pipeline.storage import NAMESPACE, USERS, Folder, Workspace

KEY, LOCK, MARK, TABLES, ICEBERG, CATALOG = "run.key", "lock", "forgetting", "tables", "iceberg", "catalog.db"

OURS = frozenset(
    {KEY, LOCK, USERS, MARK, TABLES, ICEBERG, CATALOG, "warehouse", "releases", "perturbations", "audits"}
    | {f"{CATALOG}-{end}" for end in ("journal", "wal", "shm")}
)
"""What facecrowd puts at the top of a workspace. Anything else is somebody's, and stops the forgetting."""

REMOVED_AT_ONCE = 1000


@dataclass(frozen=True)
class Holdings:
    """What lies in a workspace. ``tables``: the runs of each; ``links``: symbolic links, and where they lead."""

    files: int
    bytes: int
    key: bool
    marked: bool
    tables: dict[str, tuple[str, ...]]
    links: dict[str, str] = field(default_factory=dict)
    shared: int = 0
    """Files that have another name (hard link) somewhere."""

    @property
    def line(self) -> str:
        runs = sum(map(len, self.tables.values()))
        key = "the run key" if self.key else "no run key (it went before)" if self.marked else "no run key"
        return f"{key}, {len(self.tables)} tables with {runs} runs, {self.files} files, {self.bytes / 1e6:.1f} MB"


def forget(url: str, catalog: str | None = None, yes: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Destroy the workspace, or say what would be. Returns the report and its lines.

    catalog : name of the PyIceberg catalog that its tables are in, where it is not the workspace's own; "none" where
        that catalog is gone

    ``destroyed`` of the report: whether it was done; ``met``: whether nothing of it is left that we know of.
    Raises ConfigError where this is no workspace or holds what is not facecrowd's, WorkspaceError while a job uses it.
    """
    named = None if catalog in (None, "none") else catalog
    workspace = Workspace(url, named)
    held = survey(workspace)
    if workspace.folder.local is None and catalog is None:
        raise ConfigError(
            f"workspace {url}: on an object store the tables are in a catalog outside; name it with --catalog NAME "
            "(or 'none' where it is gone for good)"
        )
    if named is not None:
        workspace.check()
    elsewhere = _elsewhere(workspace, held)
    report: dict[str, Any] = {"workspace": url, "destroyed": yes, "held": asdict(held), "left": [], "met": False}
    if not yes:
        lines = [f"workspace {url}: {held.line}", *_links(held), *elsewhere, AFTERWARDS]
        return report, [*lines, "nothing was destroyed; give --yes to destroy it"]
    if workspace.folder.local is not None:
        with _held(workspace.folder.local):
            left = _destroy(workspace, held)
    else:
        left = _destroy(workspace, held)
    report |= {"left": left, "met": not left}
    done = [f"workspace {url}: destroyed: {held.line}"]
    if held.key:
        done.append(OVERWRITTEN if workspace.folder.local is not None else REPLACED)
    lines = [*done, *(f"LEFT: {what}" for what in left), *elsewhere, AFTERWARDS]
    return report, lines


OVERWRITTEN = (
    "the run key was overwritten before it was deleted, all else was only deleted. On a disk that writes in place that "
    "ends the key; an SSD, a copy-on-write or network file system, snapshots and backups may keep the old blocks for a "
    "while: only encrypting the disk, and destroying that key, ends them for sure"
)
REPLACED = "the run key was replaced before it was deleted; what the store keeps underneath is the store's"
AFTERWARDS = (
    "from now on no release of this workspace can be made again, audited against its originals, or added to, and no "
    "later release can be planned against it; photos of the input, releases, audits and studies written elsewhere, and "
    "copies of the workspace stay as they are"
)


def survey(workspace: Workspace) -> Holdings:
    """Look at a workspace, touching nothing. Raises ConfigError where it is none, or holds what is not facecrowd's."""
    folder, url = workspace.folder, workspace.url
    if folder.local is not None and folder.local.is_symlink():
        raise ConfigError(f"workspace {url}: is a symbolic link; name the folder that it leads to")
    names = folder.names()
    if not names:
        raise ConfigError(f"workspace {url}: nothing is there")
    if not {KEY, TABLES, MARK} & set(names):
        raise ConfigError(f"workspace {url}: neither a run.key nor tables in it; is it a facecrowd workspace?")
    strangers = [name for name in names if not _ours(name)]
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise ConfigError(
            f"workspace {url}: holds {', '.join(strangers[:5])}{more}, which facecrowd did not put there; move it away "
            "and run it again"
        )
    runs: dict[str, set[str]] = {}
    files = size = shared = 0
    links: dict[str, str] = {}
    for path, length, link, copies in _walk(folder):
        files, size, shared = files + 1, size + length, shared + (copies > 1)
        if link is not None:
            links[path] = link
        parts = path.split("/")
        if parts[0] == TABLES and len(parts) > 3:
            runs.setdefault(parts[1], set()).add(parts[2])
    tables = {name: tuple(sorted(found)) for name, found in sorted(runs.items())}
    return Holdings(files, size, KEY in names, MARK in names, tables, links, shared)


def _ours(name: str) -> bool:
    """Whether facecrowd put it there; a file that was being written when its job was killed ends in .tmp."""
    return name in OURS or (name.endswith(".tmp") and name.split(".", 1)[0] in {n.split(".", 1)[0] for n in OURS})


def _walk(folder: Folder) -> Iterator[tuple[str, int, str | None, int]]:
    """Every file and link below: relative path, bytes, where a link leads, and how many names it has."""
    if folder.local is None:
        for path, about in folder.files():
            yield path, int(about.get("size") or 0), None, 1
        return
    for where, folders, names in os.walk(folder.local):  # follows no links
        for name in sorted([*names, *(f for f in folders if os.path.islink(os.path.join(where, f)))]):
            full = os.path.join(where, name)
            found = os.lstat(full)
            link = os.readlink(full) if stat.S_ISLNK(found.st_mode) else None
            yield os.path.relpath(full, folder.local), found.st_size, link, found.st_nlink


def _links(held: Holdings) -> list[str]:
    out = [f"{path} is a symbolic link: it is removed, what lies at {target} is not" for path, target in _few(held)]
    if held.shared:
        out.append(f"{held.shared} files have other names (hard links), under which they stay")
    return out


def _few(held: Holdings) -> list[tuple[str, str]]:
    return list(held.links.items())[:20]


def _elsewhere(workspace: Workspace, held: Holdings) -> list[str]:
    """What copies of it places outside may hold."""
    local = workspace.folder.local
    out = []
    if workspace.catalog_name:
        out.append(
            f"catalog {workspace.catalog_name}: its older snapshots and metadata files still list the files of this "
            "workspace, with the first and last value of each column (names of photos and of people among them), until "
            "the snapshots are expired and the files removed"
        )
    elif held.tables and not (local is not None and (local / CATALOG).exists()) and not held.marked:
        out.append(
            "no catalog of its own is in it: if its tables were committed to one outside, the rows stay listed there "
            "(with the first and last value of each column), and reading those tables fails; name it with --catalog"
        )
    if local is None:
        from facecrowd.jobs.renditions import WORK

        kept = _versioned(workspace.folder)
        if kept is None:
            out.append("a store that keeps versions or backups still holds every object: remove them there")
        elif kept:
            out.append(
                "the bucket keeps versions: the run key and every object are still there as older versions; delete all "
                "versions below this path, or let a lifecycle rule do it"
            )
        out.append("an object store has no locks: whether a job still uses the workspace cannot be seen from here")
        out.append(f"audits of it may have left features of its people in {WORK}")
    return out


def _versioned(folder: Folder) -> bool | None:
    """Whether the bucket keeps versions; None where the store does not say."""
    ask = getattr(folder.fs, "is_bucket_versioned", None)
    if ask is None:
        return None
    try:
        return bool(ask(folder.root.split("/", 1)[0]))
    except Exception:  # whatever its library raises: it may not be ours to know
        return None


# --------------------------------------------------------------------------------------------------------- destroying


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """The locks that a running job, and all that read the workspace, hold. This makes no folder and follows no link."""
    handles: list[int] = []
    try:
        for name in (LOCK, USERS):
            try:
                handles.append(os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise WorkspaceError(f"workspace {root}: its lock cannot be opened: {error.strerror}") from None
            try:
                fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkspaceError(
                    f"workspace {root}: a job is using it; nothing was destroyed, stop it first"
                ) from None
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _destroy(workspace: Workspace, held: Holdings) -> list[str]:
    """The key, the rows in a catalog outside, then everything. Returns what is left."""
    folder = workspace.folder
    folder.write(b"", MARK)
    _destroy_key(folder)
    kept, left = _withdraw(workspace, held)
    left += _links(held)
    if folder.local is not None:
        _remove_tree(folder.local, kept)
    else:
        _remove_objects(folder, kept)
    return left


def _destroy_key(folder: Folder) -> None:
    if folder.local is None:
        if folder.exists(KEY):
            folder.write(secrets.token_bytes(64), KEY)
            folder.fs.rm_file(folder.at(KEY))
        return
    file = folder.local / KEY
    try:
        about = file.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(about.st_mode):
        file.chmod(0o600)
        handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.write(handle, secrets.token_bytes(max(about.st_size, 1)))
            os.fsync(handle)
        finally:
            os.close(handle)
    file.unlink()
    above = os.open(folder.local, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _withdraw(workspace: Workspace, held: Holdings) -> tuple[set[str], list[str]]:
    """Take the rows of this workspace out of a catalog that others may share: left in, reading its tables would fail on
    the files that are gone. A table that nobody else has rows in is dropped.

    Returns names below ``iceberg`` that must stay, for they are the metadata of tables which others still use, and
    what is left.
    """
    kept: set[str] = set()
    left: list[str] = []
    if not workspace.catalog_name:
        return kept, left
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
    from pyiceberg.expressions import In, Reference

    catalog = workspace.catalog()
    names = set(held.tables) | _below(workspace.folder, ICEBERG)
    base = _plain(workspace.folder)
    for name in sorted(names):
        try:
            table = catalog.load_table((NAMESPACE, name))
            paths = table.inspect.data_files()["file_path"].to_pylist()
        except (NoSuchTableError, NoSuchNamespaceError):
            continue
        except Exception as error:
            what = " ".join(str(error).split())[:200]
            raise StoreError(
                f"catalog {workspace.catalog_name}: table {name}: {type(error).__name__}: {what}; the run key is gone, "
                "run it again for the rest"
            ) from None
        ours = [path for path in paths if _address(path).startswith(f"{base}/")]
        if len(ours) == len(paths):
            catalog.drop_table((NAMESPACE, name))
            continue
        if ours:
            runs = {path.rsplit("/", 2)[1] for path in ours}
            said = {"facecrowd.forgotten": str(len(runs))}
            table.delete(In(term=Reference("run"), values=runs), snapshot_properties=said)
        if _address(table.location()).startswith(f"{base}/"):
            kept.add(name)
            left.append(
                f"{ICEBERG}/{name}: the metadata of a table in catalog {workspace.catalog_name} where other workspaces "
                "have rows too; it lists files of this one, and first and last values of their columns"
            )
    return kept, left


def _below(folder: Folder, name: str) -> set[str]:
    return set(folder.child(name).names())


def _plain(folder: Folder) -> str:
    return _address(str(folder.local.resolve()) if folder.local is not None else folder.url)


def _address(url: str) -> str:
    """A URL without what differs between those who write it."""
    return url.removeprefix("file://").replace("s3a://", "s3://").rstrip("/")


def _remove_tree(root: Path, kept: set[str]) -> None:
    """Everything but what others use; the mark, by which a killed forgetting is known, last."""
    names = [name for name in sorted(os.listdir(root)) if name not in (MARK, LOCK)]
    for name in names:
        entry = root / name
        if name == ICEBERG and kept:
            for table in sorted(os.listdir(entry)):
                if table not in kept:
                    _remove(entry / table)
            continue
        _remove(entry)
    if kept:
        return
    for name in (LOCK, MARK):
        (root / name).unlink(missing_ok=True)
    try:
        root.rmdir()
    except OSError:
        # A mount point, or its parent is not ours to write: an empty folder says nothing.
        if os.listdir(root):
            raise


def _remove(entry: Path) -> None:
    """A file, a link or a whole tree; never what a link leads to."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _remove_objects(folder: Folder, kept: set[str]) -> None:
    stays = tuple(f"{ICEBERG}/{name}/" for name in kept)
    found = [path for path, _ in folder.files() if path != MARK and not (stays and path.startswith(stays))]
    for start in range(0, len(found), REMOVED_AT_ONCE):
        folder.fs.rm([posixpath.join(folder.root, path) for path in found[start : start + REMOVED_AT_ONCE]])
    if not kept:
        folder.fs.rm_file(folder.at(MARK))
