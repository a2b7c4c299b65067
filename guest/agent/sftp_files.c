/* What the SFTP server does with open files. */
#define _GNU_SOURCE
#include "sftp_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct open_file {
    int fd; /* of the directory's, if it is one */
    DIR *directory;
    bool is_open, is_appended;
} files[SFTP_HANDLES_MAX];

static struct open_file *find(uint32_t handle)
{
    return handle < SFTP_HANDLES_MAX && files[handle].is_open ? &files[handle] : NULL;
}

static int free_handle(uint32_t *handle)
{
    for (uint32_t i = 0; i < SFTP_HANDLES_MAX; i++)
        if (!files[i].is_open) {
            *handle = i;
            return 0;
        }
    return EMFILE;
}

static int flags_of(uint32_t how)
{
    int flags = how & OPEN_WRITE ? (how & OPEN_READ ? O_RDWR : O_WRONLY) : O_RDONLY;
    flags |= how & OPEN_APPEND ? O_APPEND : 0;
    flags |= how & OPEN_CREATE ? O_CREAT : 0;
    flags |= how & OPEN_CUT ? O_TRUNC : 0;
    flags |= how & OPEN_NEW ? O_EXCL : 0;
    return flags | O_NOCTTY | O_CLOEXEC;
}

int files_open(const char *path, uint32_t how, const struct wanted *wanted, uint32_t *handle)
{
    int error = free_handle(handle);
    if (error)
        return error;
    mode_t mode = wanted->flags & HAS_MODE ? wanted->mode & 07777 : 0666;
    int fd = open(path, flags_of(how), mode);
    if (fd < 0)
        return errno;
    files[*handle] =
        (struct open_file){.fd = fd, .is_open = true, .is_appended = (how & OPEN_APPEND) != 0};
    return 0;
}

int files_open_directory(const char *path, uint32_t *handle)
{
    int error = free_handle(handle);
    if (error)
        return error;
    DIR *directory = opendir(path);
    if (!directory)
        return errno;
    files[*handle] =
        (struct open_file){.fd = dirfd(directory), .directory = directory, .is_open = true};
    return 0;
}

int files_close(uint32_t handle)
{
    struct open_file *file = find(handle);
    if (!file)
        return EBADF;
    file->is_open = false;
    return (file->directory ? closedir(file->directory) : close(file->fd)) < 0 ? errno : 0;
}

int files_read(uint32_t handle, uint64_t offset, uint8_t *bytes, size_t *count)
{
    const struct open_file *file = find(handle);
    if (!file || file->directory)
        return EBADF;
    ssize_t got;
    do {
        got = pread(file->fd, bytes, *count, (off_t)offset);
        if (got < 0 && errno == ESPIPE)
            got = read(file->fd, bytes, *count);
    } while (got < 0 && errno == EINTR);
    *count = got > 0 ? (size_t)got : 0;
    return got < 0 ? errno : 0;
}

int files_write(uint32_t handle, uint64_t offset, const uint8_t *bytes, size_t count)
{
    const struct open_file *file = find(handle);
    if (!file || file->directory)
        return EBADF;
    bool is_placed = !file->is_appended;
    while (count) {
        ssize_t put = is_placed ? pwrite(file->fd, bytes, count, (off_t)offset)
                                : write(file->fd, bytes, count);
        if (put < 0 && errno == ESPIPE && is_placed)
            is_placed = false;
        else if (put < 0 && errno != EINTR)
            return errno;
        if (put <= 0)
            continue;
        bytes += put;
        offset += (uint64_t)put;
        count -= (size_t)put;
    }
    return 0;
}

int files_sync(uint32_t handle)
{
    const struct open_file *file = find(handle);
    if (!file)
        return EBADF;
    return fsync(file->fd) < 0 ? errno : 0;
}

int files_next(uint32_t handle, char name[NAME_MAX + 1], struct stat *status)
{
    const struct open_file *file = find(handle);
    if (!file || !file->directory)
        return EBADF;
    errno = 0;
    struct dirent *entry = readdir(file->directory);
    if (!entry)
        return errno ? errno : SFTP_END;
    snprintf(name, NAME_MAX + 1, "%s", entry->d_name);
    if (fstatat(file->fd, name, status, AT_SYMLINK_NOFOLLOW) < 0)
        memset(status, 0, sizeof *status); /* it went away */
    return 0;
}

int files_status(uint32_t handle, struct stat *status)
{
    const struct open_file *file = find(handle);
    if (!file)
        return EBADF;
    return fstat(file->fd, status) < 0 ? errno : 0;
}

int files_set(uint32_t handle, const struct wanted *wanted)
{
    const struct open_file *file = find(handle);
    if (!file)
        return EBADF;
    const struct timespec times[] = {{.tv_sec = wanted->accessed}, {.tv_sec = wanted->modified}};
    bool is_set =
        (!(wanted->flags & HAS_SIZE) || ftruncate(file->fd, (off_t)wanted->size) == 0) &&
        (!(wanted->flags & HAS_OWNER) || fchown(file->fd, wanted->uid, wanted->gid) == 0) &&
        (!(wanted->flags & HAS_MODE) || fchmod(file->fd, wanted->mode & 07777) == 0) &&
        (!(wanted->flags & HAS_TIMES) || futimens(file->fd, times) == 0);
    return is_set ? 0 : errno;
}

int files_space(uint32_t handle, struct statvfs *space)
{
    const struct open_file *file = find(handle);
    if (!file)
        return EBADF;
    return fstatvfs(file->fd, space) < 0 ? errno : 0;
}
