"""What programs do to files, and what can be seen of files: standard library only.

Runs on the host and, as text, inside a sandbox. A step is a list: its kind, a place, and what that
kind needs. A place is a number, which means one of what there is below the top, or a number and a
name, which is that name in one of the folders that there are. Names are text as of `os.fsdecode`.
"""

import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess

DONE, FAILED, COPIED = "done", "failed", "copied"
SET_TIMES_BELOW = 1_500_000_000
"""Times before that were set, the others are of the run."""


def do(top, steps, expected=None):
    """Do all steps; return what came of each. Where a folder could not be renamed it is copied
    and removed, as `mv` does; where `expected` says so that is done as well."""
    os.umask(0o022)
    results = []
    for number, (kind, place, *rest) in enumerate(steps):
        hint = None if expected is None else expected[number]
        if hint == FAILED and kind in ("attribute", "link"):
            results.append(FAILED)  # An engine may refuse these where Linux does not.
            continue
        try:
            result = _KINDS[kind](_path(top, place), top, hint, *rest)
        except OSError:
            result = FAILED
        results.append(result or DONE)
    return results


def _path(top, place):
    folders, all_there_is = [top], []
    for folder, its_folders, files in os.walk(top):
        folders += [os.path.join(folder, name) for name in its_folders]
        all_there_is += [os.path.join(folder, name) for name in (*its_folders, *files)]
    if isinstance(place, int):
        all_there_is.sort()
        at = place % max(1, len(all_there_is))
        return all_there_is[at] if all_there_is else os.path.join(top, "nothing")
    number, name = place
    folders = sorted(folder for folder in folders if not os.path.islink(folder))
    return os.path.join(folders[number % len(folders)], name)


def look(top):
    """Return all below `top` by path: what it is, its mode, owners and time, what it holds."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = _described(path)
    return found


def _described(path):
    status = os.lstat(path)
    mode, time_s = status.st_mode, int(status.st_mtime)
    told = [
        stat.S_IFMT(mode),
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        time_s if time_s < SET_TIMES_BELOW else None,
    ]
    if stat.S_ISLNK(mode):
        return [*told, os.readlink(path)]
    if stat.S_ISREG(mode):
        with open(path, "rb") as file:
            told += [status.st_size, hashlib.file_digest(file, "sha256").hexdigest()[:16]]
    return [*told, _attributes(path)]


def _attributes(path):
    try:
        names = [name for name in os.listxattr(path) if name.startswith("user.")]
        return {name: os.getxattr(path, name).hex() for name in sorted(names)}
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}


def _opened(path, flags, work):
    with open(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r+b", 0) as file:
        work(file)


def _write(path, top, hint, at, size, seed):
    def work(file):
        if size:  # Whether a write of nothing is a change of the file is for kernels to say.
            file.seek(at)
            file.write(random.Random(seed).randbytes(size))

    _opened(path, os.O_RDWR | os.O_CREAT, work)


def _append(path, top, hint, size, seed):
    def work(file):
        if size:
            file.seek(0, os.SEEK_END)
            file.write(random.Random(seed).randbytes(size))

    _opened(path, os.O_RDWR, work)


def _truncate(path, top, hint, size):
    def work(file):
        if os.fstat(file.fileno()).st_size != size:  # As with writes of nothing.
            file.truncate(size)

    _opened(path, os.O_RDWR, work)


def _chmod(path, top, hint, mode):
    if os.path.islink(path):
        return FAILED
    os.chmod(path, mode)
    return DONE


def _chown(path, top, hint, uid, gid):
    os.lchown(path, uid, gid)


def _utime(path, top, hint, seconds):
    os.utime(path, (seconds, seconds), follow_symlinks=False)


def _mkdir(path, top, hint):
    os.mkdir(path)


def _rmdir(path, top, hint):
    os.rmdir(path)


def _rename(path, top, hint, into):
    into = _path(top, into)
    if hint != COPIED:
        try:
            os.rename(path, into)
            return DONE
        except OSError as error:
            if error.errno != errno.EXDEV or into.startswith(f"{path}/"):
                raise
    if os.path.lexists(into):
        os.rmdir(into)
    subprocess.run(["cp", "-a", "-T", "--", path, into], check=True)
    shutil.rmtree(path)
    return COPIED


def _symlink(path, top, hint, target):
    os.symlink(target, path)


def _link(path, top, hint, other):
    os.link(_path(top, other), path, follow_symlinks=False)


def _unlink(path, top, hint):
    os.unlink(path)


def _to_file(path, top, hint, seed):
    if os.path.islink(path) or not os.path.isdir(path):
        return FAILED
    shutil.rmtree(path)
    return _write(path, top, hint, 0, 100, seed)


def _to_folder(path, top, hint):
    os.unlink(path)
    os.mkdir(path)


def _attribute(path, top, hint, value):
    if os.path.islink(path):
        return FAILED
    os.setxattr(path, "user.mine", bytes.fromhex(value))
    return DONE


_KINDS = {
    "write": _write,
    "append": _append,
    "truncate": _truncate,
    "chmod": _chmod,
    "chown": _chown,
    "utime": _utime,
    "mkdir": _mkdir,
    "rmdir": _rmdir,
    "rename": _rename,
    "symlink": _symlink,
    "link": _link,
    "unlink": _unlink,
    "to file": _to_file,
    "to folder": _to_folder,
    "attribute": _attribute,
}
