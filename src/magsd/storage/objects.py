"""The object store: whole objects under keys, in a directory or in a bucket of S3.

It is the truth for what it holds; files elsewhere on a node are copies. Owns
keys, durability, time limits and the translation of foreign errors; what the
objects are is the business of whoever puts them.

The work is done by `obstore` in threads of its own: its asyncio calls now and
then abort the process when the interpreter ends. A directory is written here,
because `obstore` does not sync what it writes there.
"""

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store
from typing_extensions import override

from magsd.model.errors import CapacityError, InvalidError, NotFoundError

AWS_VARIABLES: Final = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region",
    "AWS_DEFAULT_REGION": "default_region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint",
}
"""Which variables count for a bucket, a later one before an earlier one of the same
meaning, and what `obstore` calls them."""

_KEY: Final = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,127}){0,7}"
)
_STAGING: Final = ".staging"
"""No key begins with a dot."""
_CHUNK_BYTES: Final = 1 << 20
_PART_BYTES: Final = 5 << 20
_PARTS_AT_ONCE: Final = 2
_LISTED_AT_ONCE: Final = 500
_THREADS: Final = 8
_TRIES: Final = 4
_CLIENT: Final = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=20)}
_RETRIES: Final[Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
_PROBE: Final = b"may be removed\n"
_UNREACHABLE: Final = "the object store cannot be used now: try again in a moment"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ObjectStoreSettings:
    """Where the objects are."""

    url: str
    """`file:///directory` or `s3://bucket/prefix`."""
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values of `AWS_VARIABLES`."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an object without its content."""

    key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was written to a file."""

    size_bytes: int
    sha256: str


class ObjectStore(ABC):
    """Objects by key. Belongs to one event loop.

    Every call raises `InvalidError` for what is no key, `NotFoundError` where
    there is no such object, and `CapacityError` while the store is away or
    full; `trouble` tells what the last call found. A call that is cancelled may
    or may not have happened.
    """

    batch: int = 1
    """How many objects are best looked for or put by one call."""

    def __init__(self, store: Any, private: tuple[str, ...] = ()) -> None:
        self.trouble: str | None = None
        """Why the store could not be used, for an operator; None when it could."""
        self._store = store
        self._private = private
        self._threads = ThreadPoolExecutor(_THREADS, "objects")
        self._is_closed = False

    async def put(self, key: str, content: bytes | Path) -> None:
        """Keep `content`, or a file's, under `key`; durable on return, whole or not at all.

        An object that is there already is replaced.
        """
        _check(key)
        await self._run(lambda: self._put(key, content), not_found="")

    async def put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Keep each content under its key, as `put` does, in about the time of one where it can.

        They are asked for in another thread, one by one. When it fails, some may be there.
        """
        await self._run(lambda: self._put_all(objects), not_found="")

    async def get(self, key: str, into: Path, *, limit_bytes: int) -> Fetched:
        """Write an object to the new file `into`; return what was written.

        Ends soon after more than `limit_bytes`, so that a false object fills no disk.
        """
        _check(key)
        return await self._run(
            lambda: self._get(key, into, limit_bytes), not_found=f"there is no object {key}"
        )

    async def delete(self, key: str) -> None:
        """Remove an object. Where there is none that is as well."""
        _check(key)
        with suppress(NotFoundError):
            await self._run(lambda: obstore.delete(self._store, key), not_found="it is gone")

    async def head(self, key: str) -> Head:
        """Return what is known of an object."""
        _check(key)
        found = await self._run(
            lambda: obstore.head(self._store, key), not_found=f"there is no object {key}"
        )
        return Head(key, found["size"])

    async def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return how many bytes those of some objects have that are there.

        Looks for one after another: a bucket takes as long as it takes for that many heads.
        """
        for key in keys:
            _check(key)
        return await self._run(lambda: dict(self._sizes(keys)), not_found="")

    async def list(self, prefix: str) -> AsyncIterator[Head]:
        """Yield the objects below the folder `prefix`, in no order."""
        _check(prefix)
        stream = await self._run(
            lambda: obstore.list(self._store, prefix, chunk_size=_LISTED_AT_ONCE), not_found=""
        )
        while (found := await self._run(lambda: next(stream, None), not_found="")) is not None:
            for each in found:
                yield Head(each["path"], each["size"])

    async def probe(self) -> None:
        """Put, get and delete something, so that `trouble` is as it is now."""
        key, content = f"probe/{secrets.token_hex(8)}", _PROBE

        def work() -> None:
            self._put(key, content)
            if bytes(obstore.get(self._store, key).bytes()) != content:
                raise OSError("the object store returned something else than was put there")
            obstore.delete(self._store, key)

        with suppress(CapacityError):
            await self._run(work, not_found="")

    async def aclose(self) -> None:
        """End when what is under way has ended or run out of its time, seconds at most."""
        self._is_closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    @abstractmethod
    def _put(self, key: str, content: bytes | Path) -> None: ...

    def _put_all(self, objects: Iterable[tuple[str, bytes]]) -> None:
        for key, content in objects:
            _check(key)
            if self._is_closed:
                raise _stopping()
            self._put(key, content)

    def _sizes(self, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
        for key in keys:
            with suppress(FileNotFoundError):
                yield key, obstore.head(self._store, key)["size"]

    def _get(self, key: str, into: Path, limit_bytes: int) -> Fetched:
        digest, size_bytes = hashlib.sha256(), 0
        with into.open("xb") as file:
            for chunk in obstore.get(self._store, key).stream(min_chunk_size=_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += file.write(chunk)
                if size_bytes > limit_bytes:
                    break
        return Fetched(size_bytes, digest.hexdigest())

    async def _run(self, work: Callable[[], _Result], *, not_found: str) -> _Result:
        """Do `work` in a thread. `not_found` is the message when an object is missing;
        without one a missing object means that the place of all objects is missing."""
        if self._is_closed:
            raise _stopping()
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except FileNotFoundError as error:
            if not_found and "NoSuchBucket" not in str(error):
                self.trouble = None
                raise NotFoundError(not_found) from None
            raise self._away(error) from None
        except (BaseError, OSError) as error:
            raise self._away(error) from None
        self.trouble = None
        return result

    def _away(self, error: Exception) -> CapacityError:
        # What follows the first line are the insides of the library's objects.
        text = str(error).partition("\n")[0][:500]
        for word in self._private:
            text = text.replace(word, "***")
        self.trouble = re.sub(r"\?\S*", "?…", text) or type(error).__name__
        return CapacityError(_UNREACHABLE, self.trouble)


class DirectoryStore(ObjectStore):
    """Objects as files of one directory: write, sync, rename, sync the directory."""

    batch = 16

    def __init__(self, root: Path) -> None:
        """Make the directory, which one process alone may use, and clear what an
        unfinished put left. Raises `CapacityError`.
        """
        staging = root / _STAGING
        try:
            staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.chmod(0o700)
            for entry in staging.iterdir():
                entry.unlink()
        except OSError as error:
            raise CapacityError(
                f"the object store {root} cannot be made: {error.strerror}"
            ) from None
        super().__init__(LocalStore(root, automatic_cleanup=True))
        self._root = root
        self._staging = staging

    @override
    def _put(self, key: str, content: bytes | Path) -> None:
        self._put_all([(key, content)])

    @override
    def _put_all(self, objects: Iterable[tuple[str, bytes | Path]]) -> None:
        staged: list[tuple[Path, Path]] = []
        try:
            for key, content in objects:
                _check(key)
                staged.append((self._staging / secrets.token_hex(12), self._root / key))
                _write(staged[-1][0], content)
            # When all are on their way to the disk: the first wait is for nearly all of them.
            for path, _ in staged:
                _sync(path)
            for path, target in staged:
                self._move(path, target)
            for folder in {target.parent for _, target in staged}:
                _sync(folder)
        finally:
            for path, _ in staged:
                path.unlink(missing_ok=True)

    @override
    def _sizes(self, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
        for key in keys:
            with suppress(FileNotFoundError):
                found = (self._root / key).stat()
                if stat.S_ISREG(found.st_mode):
                    yield key, found.st_size

    def _move(self, staged: Path, target: Path) -> None:
        # A folder that was found may be gone again: the last object in it was deleted.
        for attempt in range(_TRIES):
            self._make_folder(target.parent)
            try:
                staged.rename(target)
                break
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise

    def _make_folder(self, folder: Path) -> None:
        if folder == self._root or folder.is_dir():
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError, FileNotFoundError):  # somebody else makes, or removes, it
            folder.mkdir(mode=0o700)
            _sync(folder.parent)


class BucketStore(ObjectStore):
    """Objects in a bucket of a service that speaks S3."""

    def __init__(self, bucket: str, prefix: str | None, aws: Mapping[str, str]) -> None:
        """Connects to nothing yet. Raises `InvalidError` for settings that cannot be right."""
        config: Any = {AWS_VARIABLES[name]: aws[name] for name in AWS_VARIABLES if aws.get(name)}
        if "endpoint" in config and not {"region", "default_region"} & config.keys():
            config["region"] = "us-east-1"
        client: Any = {**_CLIENT, "allow_http": config.get("endpoint", "").startswith("http://")}
        private = tuple(
            config[name]
            for name in ("secret_access_key", "session_token", "access_key_id")
            if name in config
        )
        try:
            store = S3Store(
                bucket, prefix=prefix, config=config, client_options=client, retry_config=_RETRIES
            )
        except (BaseError, ValueError) as error:
            raise InvalidError(f"the object store cannot be used: {error}") from None
        super().__init__(store, private)

    @override
    def _put(self, key: str, content: bytes | Path) -> None:
        obstore.put(
            self._store, key, content, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
        )


def open_store(settings: ObjectStoreSettings) -> ObjectStore:
    """Return the store that `settings` mean.

    Raises `InvalidError` for what is no such address, `CapacityError` for a
    directory that cannot be made. A bucket is not tried before it is used.
    """
    try:
        url = urlsplit(settings.url)
        host, is_plain = url.hostname or "", not (url.query or url.fragment or url.username)
    except ValueError:
        raise InvalidError(_BAD_URL) from None
    path = unquote(url.path)
    if url.scheme == "file" and not host and is_plain and path.startswith("/"):
        return DirectoryStore(Path(path))
    if url.scheme == "s3" and host and is_plain:
        prefix = path.strip("/")
        if prefix:
            _check(prefix)
        return BucketStore(host, prefix or None, settings.aws)
    raise InvalidError(_BAD_URL)


# What it holds is not said: it may be a secret in the wrong place.
_BAD_URL: Final = (
    "object_store_url must be file:///DIRECTORY or s3://BUCKET/PREFIX; "
    "keys and endpoint of a bucket are set by the variables AWS_…"
)


def _check(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise InvalidError(f"this is no key of an object: {key[:128]!r}")


def _stopping() -> CapacityError:
    return CapacityError("the service is stopping: try again in a moment")


def _write(new: Path, content: bytes | Path) -> None:
    with new.open("xb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
        file.flush()
        # "Not needed" in memory means that the kernel begins to write it; nobody waits for that.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
