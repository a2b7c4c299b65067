/* What the SFTP server does with paths. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sftp_files.h"

#define RENAME_KEEPS 1u /* RENAME_NOREPLACE */

static int result(int value) { return value < 0 ? errno : 0; }

int paths_status(const char *path, bool is_followed, struct stat *status)
{
    return result(is_followed ? stat(path, status) : lstat(path, status));
}

int paths_set(const char *path, bool is_followed, const struct wanted *wanted)
{
    const struct timespec times[] = {{.tv_sec = wanted->accessed}, {.tv_sec = wanted->modified}};
    const int flag = is_followed ? 0 : AT_SYMLINK_NOFOLLOW;
    const uint32_t flags = wanted->flags;
    if (!is_followed && flags & HAS_SIZE)
        return EINVAL;
    bool is_set =
        (!(flags & HAS_SIZE) || truncate(path, (off_t)wanted->size) == 0) &&
        (!(flags & HAS_OWNER) || fchownat(AT_FDCWD, path, wanted->uid, wanted->gid, flag) == 0) &&
        (!(flags & HAS_MODE) || fchmodat(AT_FDCWD, path, wanted->mode & 07777, flag) == 0) &&
        (!(flags & HAS_TIMES) || utimensat(AT_FDCWD, path, times, flag) == 0);
    return is_set ? 0 : errno;
}

int paths_space(const char *path, struct statvfs *space) { return result(statvfs(path, space)); }

int paths_remove(const char *path) { return result(unlink(path)); }

int paths_make_directory(const char *path, const struct wanted *wanted)
{
    return result(mkdir(path, wanted->flags & HAS_MODE ? wanted->mode & 07777 : 0777));
}

int paths_remove_directory(const char *path) { return result(rmdir(path)); }

int paths_rename(const char *from, const char *to, bool may_replace)
{
    struct stat status;
    if (may_replace)
        return result(rename(from, to));
    if (syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, RENAME_KEEPS) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return errno;
    return lstat(to, &status) == 0 ? EEXIST : result(rename(from, to));
}

int paths_link(const char *from, const char *to) { return result(link(from, to)); }

int paths_symlink(const char *content, const char *path) { return result(symlink(content, path)); }

int paths_read_link(const char *path, char content[PATH_MAX])
{
    ssize_t length = readlink(path, content, PATH_MAX - 1);
    content[length > 0 ? length : 0] = 0;
    return length < 0 ? errno : 0;
}

int paths_resolve(const char *path, char resolved[PATH_MAX])
{
    char parent[PATH_MAX], found[PATH_MAX];
    if (realpath(path, resolved))
        return 0;
    const char *slash = strrchr(path, '/'), *last = slash ? slash + 1 : path;
    if (errno != ENOENT || !*last || strcmp(last, "..") == 0)
        return errno;
    snprintf(parent, sizeof parent, "%.*s", slash ? (int)(last - path) : 1, slash ? path : ".");
    if (!realpath(parent, found))
        return errno;
    const char *joint = strcmp(found, "/") == 0 ? "" : "/";
    bool fits = snprintf(resolved, PATH_MAX, "%s%s%s", found, joint, last) < PATH_MAX;
    return fits ? 0 : ENAMETOOLONG;
}
