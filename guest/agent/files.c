/* Streams `read` and `write`: files, whole. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "services.h"

struct reading {
    int fd, polled_at;
};

struct writing {
    int fd;
    mode_t mode;
    char path[PATH_MAX], aside[PATH_MAX];
};

static const char *read_open(struct stream *stream, struct fields request)
{
    const char *path = fields_get(request.bytes, request.length, "path");
    if (!path)
        return "read of no path";
    struct stat status = {0};
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int error = fd < 0 || fstat(fd, &status) < 0 ? errno : 0;
    if (!error && !S_ISREG(status.st_mode))
        error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    struct reading *reading = error ? NULL : malloc(sizeof *reading);
    if (!reading) {
        if (fd >= 0)
            close(fd);
        stream_fail(stream, error ? error : ENOMEM);
        return NULL;
    }
    *reading = (struct reading){.fd = fd, .polled_at = -1};
    stream->state = reading;
    return NULL;
}

static void read_abandon(struct stream *stream)
{
    struct reading *reading = stream->state;
    close(reading->fd);
    free(reading);
}

static void read_watch(struct stream *stream, struct poll_set *set)
{
    struct reading *reading = stream->state;
    bool is_wanted = stream_room(stream, WIRE_OUT) > 0;
    reading->polled_at = is_wanted ? poll_add(set, reading->fd, POLLIN) : -1;
}

static void read_pump(struct stream *stream, const struct poll_set *set)
{
    const struct reading *reading = stream->state;
    if (!poll_is_ready(set, reading->polled_at) || !stream_room(stream, WIRE_OUT))
        return;
    ssize_t got = stream_send_from(stream, WIRE_OUT, reading->fd, SIZE_MAX);
    int error = got < 0 ? errno : 0;
    if (got > 0 || error == EINTR || error == EAGAIN)
        return;
    read_abandon(stream);
    if (error) {
        stream_fail(stream, error);
        return;
    }
    stream_send_eof(stream, WIRE_OUT);
    stream_exit(stream, 0, NULL);
}

/* Make every folder that leads to `path`. Returns 0 or an errno. */
static int make_parents(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int error = mkdir(path, 0755) < 0 ? errno : 0;
        *slash = '/';
        if (error && error != EEXIST && error != EROFS)
            return error;
    }
    return 0;
}

/* Open a new file in the folder of the one to be written. Returns 0 or an errno. */
static int open_aside(struct writing *writing, unsigned key)
{
    const char *slash = strrchr(writing->path, '/');
    int folder = slash ? (int)(slash - writing->path) + 1 : 0;
    int length = snprintf(writing->aside, PATH_MAX, "%.*s.mags-%x", folder, writing->path, key);
    if (length >= PATH_MAX)
        return ENAMETOOLONG;
    int error = make_parents(writing->path);
    if (error)
        return error;
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    unlink(writing->aside); /* of a life of the VM that ended in the middle */
    writing->fd = open(writing->aside, flags, 0600);
    return writing->fd < 0 ? errno : 0;
}

static const char *write_open(struct stream *stream, struct fields request)
{
    const char *path = fields_get(request.bytes, request.length, "path");
    const char *mode = fields_get(request.bytes, request.length, "mode");
    if (!path || !*path)
        return "write of no path";
    char *end = NULL;
    unsigned long bits = mode ? strtoul(mode, &end, 8) : 0644;
    if (mode && (end == mode || *end || bits > 07777))
        return "not a mode";
    struct writing *writing = malloc(sizeof *writing);
    if (!writing)
        return "out of memory";
    writing->fd = -1;
    writing->mode = (mode_t)bits;
    bool fits = snprintf(writing->path, PATH_MAX, "%s", path) < PATH_MAX;
    int error = fits ? open_aside(writing, stream->id) : ENAMETOOLONG;
    if (error) {
        free(writing);
        stream_fail(stream, error);
        return NULL;
    }
    stream->state = writing;
    return NULL;
}

static void write_abandon(struct stream *stream)
{
    struct writing *writing = stream->state;
    close(writing->fd);
    unlink(writing->aside);
    free(writing);
}

static void write_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    const struct writing *writing = stream->state;
    for (size_t done = 0; done < count;) {
        ssize_t put = write(writing->fd, bytes + done, count - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0) {
            int error = errno;
            write_abandon(stream);
            stream_fail(stream, error);
            return;
        }
        done += (size_t)put;
    }
    stream_consumed(stream, count);
}

static void write_eof(struct stream *stream)
{
    const struct writing *writing = stream->state;
    bool is_written = fchmod(writing->fd, writing->mode) == 0 &&
                      rename(writing->aside, writing->path) == 0;
    int error = is_written ? 0 : errno;
    write_abandon(stream); /* once renamed, nothing is there to unlink */
    if (error)
        stream_fail(stream, error);
    else
        stream_exit(stream, 0, NULL);
}

const struct service read_service = {
    .word = "read",
    .open = read_open,
    .abandon = read_abandon,
    .watch = read_watch,
    .pump = read_pump,
};

const struct service write_service = {
    .word = "write",
    .open = write_open,
    .data = write_data,
    .eof = write_eof,
    .abandon = write_abandon,
};
