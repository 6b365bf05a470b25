"""Where things lie: files through fsspec, parts written once, tables in an Iceberg catalog, and the workspace.

A part is the output of one micro-batch: ``<workspace>/tables/<table>/<run>/part-000017.parquet``. It appears whole or
not at all, its content follows from its name alone, and so a killed job continues by making the parts that are missing.
When all parts of a run are there they are committed to the Iceberg table in one transaction that carries the run's
hash; a commit whose hash is already in the table's history is not made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.pipeline.errors import ConfigError, FacecrowdError, StoreError, WorkspaceError
from facecrowd.pipeline.schema import Manifest
from facecrowd.stages.runkey import KEY_BYTES, RunKey

ROW_GROUP = 16
"""Rows per row group where crops are stored: a class mean reads single rows from many parts."""

NAMESPACE = "facecrowd"


def without_password(url: str) -> None:
    """Refuse a URL that carries a password: it would stand in manifests, records, logs and saved configs.

    Raises ConfigError, which does not repeat it.
    """
    scheme, sign, rest = url.partition("://")
    user, at, place = rest.partition("/")[0].rpartition("@")
    if sign and at and ":" in user:
        raise ConfigError(
            f"{scheme}://…@{place}: a password in a URL would be kept with the data; give it through the environment "
            "(AWS_…, or what fsspec reads for this store)"
        )


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec filesystem; the credentials come from the environment, never from a config."""

    url: str

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._split()[0]

    @property
    def root(self) -> str:
        return self._split()[1]

    def _split(self) -> tuple[fsspec.AbstractFileSystem, str]:
        if "::" in self.url:
            raise ConfigError(f"{self.url}: '::' joins URLs, and only the first would be meant; rename the folder")
        without_password(self.url)
        try:
            # Workers write what the driver reads, so a listing remembered from before hides files that are there.
            fs, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise ConfigError(
                f"{self.url}: {error}; install facecrowd[s3] or the package that serves this URL"
            ) from None
        except ValueError as error:
            raise ConfigError(f"{self.url}: {error}") from None
        return fs, root.rstrip("/")

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None on an object store."""
        scheme = urlsplit(self.url).scheme
        if scheme in ("", "file") or len(scheme) == 1:
            return Path(self.root)
        return None

    def at(self, *names: str) -> str:
        return posixpath.join(self.root, *names)

    def child(self, *names: str) -> Folder:
        return Folder(posixpath.join(self.url.rstrip("/"), *names))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Say what a store's own library says of it; what the operating system raises, a missing file too, stays."""
        try:
            yield
        except (OSError, FacecrowdError):
            raise
        except Exception as error:
            what = " ".join(str(error).split())[:200]
            raise StoreError(f"{self.url}: cannot be reached: {type(error).__name__}: {what}") from None

    def exists(self, *names: str) -> bool:
        with self._reached():
            return bool(self.fs.exists(self.at(*names)))

    def read(self, *names: str) -> bytes:
        with self._reached():
            return bytes(self.fs.cat_file(self.at(*names)))

    def write(self, data: bytes, *names: str) -> None:
        """Write a file that is there whole or not at all: renamed into place locally, one PUT on an object store."""
        target = self.at(*names)
        if self.local is None:
            with self._reached():
                self.fs.pipe_file(target, data)
            return
        os.makedirs(posixpath.dirname(target), exist_ok=True)
        temporary = f"{target}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except OSError as error:
            error.filename = error.filename or target  # a full disk does not say what was too much for it
            raise
        finally:
            Path(temporary).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The file names directly in the folder, sorted; empty when there is no folder."""
        if not self.exists():
            return []
        return sorted(posixpath.basename(p) for p in self.fs.ls(self.root, detail=False) if p.rstrip("/") != self.root)

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every file below the folder: path relative to it, and what the filesystem knows of it; sorted."""
        with self._reached():
            found = self.fs.find(self.root, detail=True)
        for path in sorted(found):
            yield path[len(self.root) :].lstrip("/"), found[path]

    def remove(self) -> None:
        if self.exists():
            self.fs.rm(self.root, recursive=True)


def to_parquet(table: pa.Table, row_group: int | None = None) -> bytes:
    """Parquet bytes that follow from the table alone."""
    sink = pa.BufferOutputStream()
    # zstd's frames carry no checksum here, and a flipped bit of a stored crop would be a picture like any other.
    pq.write_table(
        table, sink, compression="zstd", row_group_size=row_group or max(1, len(table)), write_page_checksum=True
    )
    return sink.getvalue().to_pybytes()


def fingerprint(*values: Any) -> str:
    """16 hexadecimal digits that name a run: SHA-256 of the values as canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Parts:
    """The parts of one table and run. Picklable: workers read and write through it."""

    folder: Folder
    manifest: Manifest
    run: str

    def name(self, part: int) -> str:
        return f"part-{part:06d}.parquet"

    def write(self, part: int, columns: dict[str, Any]) -> int:
        """Write one part from columns of equal length; the run column is filled in. Returns its rows."""
        schema = self.manifest.arrow
        length = len(next(iter(columns.values())))
        columns = {**columns, "run": [self.run] * length}
        table = pa.Table.from_arrays([_array(columns[f.name], f.type) for f in schema], schema=schema)
        self.folder.write(to_parquet(table, row_group=ROW_GROUP), self.name(part))
        return length

    def done(self) -> set[int]:
        """The numbers of the parts that are there and whole."""
        numbers = set()
        for part in self.there():
            try:
                with self.folder.fs.open(self.folder.at(self.name(part)), "rb") as file:
                    pq.read_metadata(file)
            except (pa.ArrowInvalid, OSError):
                continue
            numbers.add(part)
        return numbers

    def there(self) -> set[int]:
        """The numbers of the parts that are there, whole or not."""
        names = self.folder.names()
        return {int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet")}

    def read(self, part: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A part's rows. Raises WorkspaceError where the file is damaged, as the other readers do."""
        with self._opened(part, columns) as parquet:
            table = parquet.read(columns=list(columns) if columns else None, use_threads=False)
            if len(table) != sum(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)):
                raise pa.ArrowInvalid("rows are missing")
            return table

    def read_rows(self, part: int, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Single rows of a part, in the order given, reading only the row groups that hold them."""
        with self._opened(part, columns) as parquet:
            groups = sorted({row // ROW_GROUP for row in rows})
            table = parquet.read_row_groups(groups, columns=list(columns))
        start = {group: i * ROW_GROUP for i, group in enumerate(groups)}
        return table.take([start[row // ROW_GROUP] + row % ROW_GROUP for row in rows])

    @contextmanager
    def _opened(self, part: int, columns: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
        """The part, every page held against its checksum and the columns against the manifest's types."""
        path = self.folder.at(self.name(part))
        with self.folder.fs.open(path, "rb") as file:
            try:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                there = {field.name: field.type for field in parquet.schema_arrow}
                known = {field.name: field.type for field in self.manifest.arrow}
                # Parts of an older version of the manifests may have fewer columns, whichever are asked for.
                wrong = [name for name in there if there[name] != known.get(name)]
                if wrong := [*wrong, *(name for name in columns or () if name not in known)]:
                    raise pa.ArrowInvalid(f"its column {wrong[0]} is not the manifest's")
                yield parquet
            except (pa.ArrowException, ValueError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                what = " ".join(str(error).split())[:200]
                raise WorkspaceError(
                    f"{path}: damaged ({what}); remove this file and start again to have it made anew"
                ) from None

    def read_all(self, parts: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All parts in the order of their numbers."""
        return pa.concat_tables([self.read(part, columns) for part in range(parts)])


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(kind):
        values = [None if v is None else [float(x) for x in v] for v in values]
    elif pa.types.is_map(kind):
        values = [None if v is None else sorted(v.items()) for v in values]
    elif hasattr(values, "tolist"):
        values = values.tolist()
    return pa.array(values, type=kind)


USERS = "users"
"""The file that whoever reads a workspace holds."""


@contextmanager
def held(file: Path, refusal: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock file, alone or (``LOCK_SH``) with others; the operating system drops the lock of a killed process.

    Raises WorkspaceError, with ``refusal``, where it is held otherwise.
    """
    with open(file, "w") as handle:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except OSError:
            raise WorkspaceError(refusal) from None
        yield


READ_TRIES = 4
READ_WAIT_S = 0.5
"""Before a catalog is asked again; twice as long each time."""

COMMIT_TRIES = 10
NO_RETRIES = {"commit.retry.num-retries": "0"}
"""PyIceberg's own retry adds the files again, on top of those of another job that committed the same run meanwhile."""


@dataclass
class Workspace:
    """The private side of a release: run key, parts, Iceberg catalog and lock."""

    url: str
    catalog_name: str | None = None
    folder: Folder = field(init=False)
    _catalog: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder = Folder(self.url)

    def check(self) -> None:
        """Whether there is a catalog to commit to, without opening it. Raises ConfigError."""
        from pyiceberg.utils.config import Config

        if self.folder.local is None and not self.catalog_name:
            raise ConfigError(
                f"workspace {self.url}: SQLite cannot live on an object store; name a PyIceberg catalog with "
                "workspace.catalog (configured in ~/.pyiceberg.yaml or PYICEBERG_CATALOG__NAME__URI)"
            )
        if self.catalog_name and "://" in self.catalog_name:
            raise ConfigError(
                "workspace.catalog is a URL, and must be the name of a PyIceberg catalog; its URL goes into "
                "~/.pyiceberg.yaml or PYICEBERG_CATALOG__NAME__URI"
            )
        if self.catalog_name and Config().get_catalog_config(self.catalog_name) is None:
            raise ConfigError(
                f"workspace.catalog {self.catalog_name}: no PyIceberg catalog of this name is configured "
                "(~/.pyiceberg.yaml, or PYICEBERG_CATALOG__NAME__URI)"
            )

    def create(self) -> RunKey:
        """The run key, drawn once. Call it under the lock: of two jobs only one may draw."""
        if not self.folder.exists("run.key"):
            self.folder.write(RunKey.draw().secret.hex().encode(), "run.key")
            if self.folder.local is not None:
                (self.folder.local / "run.key").chmod(0o600)
        return self.key()

    def key(self) -> RunKey:
        try:
            secret = bytes.fromhex(self.folder.read("run.key").decode())
        except FileNotFoundError:
            raise ConfigError(f"workspace {self.url}: no run.key in it; is it a facecrowd workspace?") from None
        except ValueError:
            raise WorkspaceError(f"workspace {self.url}: run.key is damaged") from None
        if len(secret) != KEY_BYTES:
            raise WorkspaceError(f"workspace {self.url}: run.key is damaged ({len(secret)} bytes)")
        return RunKey(secret)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, readable by its owner alone, and hold it for one job.

        The operating system drops the lock of a killed one.
        """
        if self.folder.local is None:
            yield  # an object store has no locks; parts are idempotent and commits guarded
            return
        self.folder.local.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.local.chmod(0o700)
        with held(self.folder.local / "lock", f"workspace {self.url}: another job is using it; wait for it or stop it"):
            for leftover in (self.folder.local / "tables").rglob("*.tmp"):  # half-written parts of a killed job
                leftover.unlink(missing_ok=True)
            yield

    @contextmanager
    def used(self, make: bool = False) -> Iterator[None]:
        """Keep the workspace from being destroyed (``forget``). Many may use it at once, beside the job that holds it.

        make : the folder, where it is not there yet. Raises WorkspaceError where it is being destroyed.
        """
        if make and self.folder.local is not None:
            self.folder.local.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.folder.local is None or not self.folder.local.is_dir() or not os.access(self.folder.local, os.W_OK):
            yield
            return
        with held(self.folder.local / USERS, f"workspace {self.url}: it is being destroyed", fcntl.LOCK_SH):
            yield

    def parts(self, manifest: Manifest, run: str) -> Parts:
        return Parts(self.folder.child("tables", manifest.name, run), manifest, run)

    def catalog(self) -> Any:
        """The PyIceberg catalog: the configured one, or SQLite in the workspace. Opened once."""
        if self._catalog is None:
            self._catalog = self._asked(self._open_catalog)
        return self._catalog

    def _open_catalog(self) -> Any:
        from pyiceberg.catalog import load_catalog

        if self.catalog_name:
            return load_catalog(self.catalog_name)
        assert self.folder.local is not None
        root = self.folder.local.resolve()
        return load_catalog(
            "workspace", type="sql", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse"
        )

    def committed(self, manifest: Manifest, run: str) -> bool:
        return run in self.snapshots(manifest).values()

    def snapshots(self, manifest: Manifest) -> dict[int, str | None]:
        """Of a manifest's Iceberg table, the oldest first: the id of each snapshot, and the run it committed."""
        from pyiceberg.exceptions import NoSuchTableError

        catalog = self.catalog()
        try:
            table = self._asked(lambda: catalog.load_table(self._identifier(manifest)))
        except NoSuchTableError:
            return {}
        return {snapshot.snapshot_id: _run_of(snapshot) for snapshot in table.snapshots()}

    def commit(self, parts: Parts, count: int) -> None:
        """Add the run's parts to its Iceberg table, exactly once, whoever else commits at the same time.

        Raises WorkspaceError when a part is missing, StoreError when the catalog refuses or fails. Where it failed in
        the middle of a commit nobody knows whether that was made; the next start finds out.
        """
        from pyiceberg.exceptions import CommitFailedException

        missing = sorted(set(range(count)) - parts.done())
        if missing:
            raise WorkspaceError(f"{parts.manifest.name}: {len(missing)} of {count} parts are missing; run it again")
        catalog = self.catalog()
        self._asked(lambda: catalog.create_namespace_if_not_exists(NAMESPACE))
        location = None if self.folder.local is not None else self.folder.child("iceberg", parts.manifest.name).url
        name = self._identifier(parts.manifest)
        table = self._asked(
            lambda: catalog.create_table_if_not_exists(
                name, schema=parts.manifest.arrow, location=location, properties=NO_RETRIES
            )
        )
        base = f"file://{parts.folder.local.resolve()}" if parts.folder.local is not None else parts.folder.url
        files = [f"{base}/{parts.name(part)}" for part in range(count)]
        for _ in range(COMMIT_TRIES):
            if any(_run_of(snapshot) == parts.run for snapshot in table.snapshots()):
                return
            try:
                # Once: what was sent may have been done, whatever is answered.
                with self._reached(f"while it committed {parts.manifest.name}"):
                    _add(table, parts, files)
                return
            except CommitFailedException:
                table = self._asked(lambda: catalog.load_table(name))
        raise StoreError(
            f"{self._place}: other jobs committed to {parts.manifest.name} first, {COMMIT_TRIES} times in a "
            "row; start it again"
        )

    def _asked(self, question: Callable[[], Any]) -> Any:
        """What a catalog answers to a question that may be put twice; one that fails for the moment is asked again."""
        from pyiceberg.exceptions import ServerError, ServiceUnavailableError, TooManyRequestsError

        tried = 0
        with self._reached():
            while True:
                try:
                    return question()
                except (ServerError, ServiceUnavailableError, TooManyRequestsError):
                    tried += 1
                    if tried == READ_TRIES:
                        raise
                    time.sleep(READ_WAIT_S * 2 ** (tried - 1))

    @contextmanager
    def _reached(self, doing: str = "") -> Iterator[None]:
        """Say in a sentence what the catalog's own library says of it, without what the catalog is asked with.

        What the operating system raises stays, and so does what commits go on from.
        """
        from pyiceberg import exceptions as its
        from sqlalchemy.exc import DBAPIError

        try:
            yield
        except (FacecrowdError, its.NoSuchTableError, its.CommitFailedException):
            raise
        except (ImportError, its.NotInstalledError) as error:
            raise ConfigError(
                f"{self._place}: {error}; install facecrowd[postgres], or the package that serves this catalog"
            ) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
            what = "failed"
            if isinstance(error, its.UnauthorizedError | its.OAuthError | its.AuthorizationExpiredError):
                what = "does not know who asks; check its credentials"
            elif isinstance(error, its.ForbiddenError):
                what = "does not allow that to who asks"
            elif self.catalog_name and isinstance(error, its.RESTError | OSError | DBAPIError) and doing:
                what = f"failed {doing}, and whether that was done is not known; start it again to go on"
            elif self.catalog_name and isinstance(error, OSError | DBAPIError):
                what = "cannot be reached"
            said = " ".join(_without(str(cause), self._properties()).split())[:200]
            raise StoreError(f"{self._place}: {what}: {type(cause).__name__}: {said}") from None

    def _properties(self) -> Mapping[str, Any]:
        """What the catalog outside is configured with."""
        from pyiceberg.utils.config import Config

        return (self.catalog_name and Config().get_catalog_config(self.catalog_name)) or {}

    @property
    def _place(self) -> str:
        return f"catalog {self.catalog_name}" if self.catalog_name else f"workspace {self.url}: catalog.db"

    @staticmethod
    def _identifier(manifest: Manifest) -> tuple[str, str]:
        return (NAMESPACE, manifest.name)


def _add(table: Any, parts: Parts, files: list[str]) -> None:
    if not NO_RETRIES.items() <= table.properties.items():
        with table.transaction() as transaction:
            transaction.set_properties(NO_RETRIES)
    if {field.name for field in table.schema().fields} != set(parts.manifest.arrow.names):
        # Made by an earlier version of the manifests; its rows have nulls in the new columns.
        with table.update_schema() as update:
            update.union_by_name(parts.manifest.arrow)
    with table.transaction() as transaction:
        transaction.add_files(files, snapshot_properties={"facecrowd.run": parts.run})


def _without(text: str, properties: Mapping[str, Any]) -> str:
    """The text without the credentials among the properties of a catalog, and without those of any URL in it."""
    known = {str(value) for name, value in properties.items() if name not in ("type", "uri", "warehouse")}
    known |= {part for value in known for part in value.split(":")}
    uri = urlsplit(str(properties.get("uri", "")))
    if uri.password:
        known |= {uri.password, unquote(uri.password)}
    known |= {value for _, value in parse_qsl(uri.query)}
    for secret in sorted((one for one in known if len(one) > 3), key=len, reverse=True):
        text = text.replace(secret, "…")
    return re.sub(r"://[^/\s@]*@", "://…@", text)


def _run_of(snapshot: Any) -> str | None:
    return snapshot.summary.additional_properties.get("facecrowd.run") if snapshot.summary else None
