/* Who the guest is: its name, clock and randomness, and the files that belong to
 * this life of it and not to its disk. Those lie on a tmpfs and are bound over
 * the root's, which so never holds them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"

#define ENTROPY_BYTES_MAX 512

/* Bind `source` over `target` unless it lies there, in place of what was bound
 * before. A target that is not there is named in the answer. Returns 0 or an errno. */
static int bind_over(const char *source, const char *target, struct queue *answer)
{
    struct stat ours, theirs, tmpfs;
    if (stat(source, &ours) < 0 || stat(RUN_DIRECTORY, &tmpfs) < 0)
        return errno;
    if (stat(target, &theirs) < 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return errno;
        queue_field(answer, "absent=%s", target);
        return 0;
    }
    if (ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
        return 0;
    if (theirs.st_dev == tmpfs.st_dev && umount2(target, MNT_DETACH) < 0)
        return errno;
    return mount(source, target, NULL, MS_BIND, NULL) < 0 ? errno : 0;
}

/* Write a file in place (what is bound is the inode) and bind it. */
static int show(const char *name, const char *content, struct queue *answer)
{
    char source[64], target[64];
    snprintf(source, sizeof source, RUN_DIRECTORY "/%s", name);
    snprintf(target, sizeof target, "/etc/%s", name);
    int fd = open(source, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno;
    ssize_t put = write(fd, content, strlen(content));
    int error = put < 0 ? errno : (size_t)put < strlen(content) ? ENOSPC : 0;
    close(fd);
    return error ? error : bind_over(source, target, answer);
}

static int set_hostname(const char *name, struct queue *answer)
{
    size_t length = strlen(name);
    const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.";
    if (!length || length > 64 || strspn(name, letters) != length)
        return EINVAL;
    if (sethostname(name, length) < 0)
        return errno;
    char text[256];
    snprintf(text, sizeof text, "%s\n", name);
    int error = show("hostname", text, answer);
    snprintf(text, sizeof text,
             "127.0.0.1\tlocalhost\n"
             "::1\tlocalhost ip6-localhost ip6-loopback\n"
             "127.0.1.1\t%s\n",
             name);
    return error ? error : show("hosts", text, answer);
}

static int set_machine_id(const char *id, struct queue *answer)
{
    char text[64];
    if (strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
        return EINVAL;
    snprintf(text, sizeof text, "%s\n", id);
    return show("machine-id", text, answer);
}

static int set_clock(const char *text)
{
    char *end;
    errno = 0;
    long long at_ns = strtoll(text, &end, 10);
    if (errno || end == text || *end || at_ns < 0)
        return EINVAL;
    struct timespec at = {.tv_sec = (time_t)(at_ns / 1000000000),
                          .tv_nsec = (long)(at_ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &at) < 0 ? errno : 0;
}

static int add_entropy(const char *hex)
{
    uint32_t room[sizeof(struct rand_pool_info) / 4 + ENTROPY_BYTES_MAX / 4] = {0};
    struct rand_pool_info *pool = (struct rand_pool_info *)room;
    size_t count = strlen(hex) / 2;
    if (strspn(hex, "0123456789abcdef") != 2 * count || hex[2 * count] || count > ENTROPY_BYTES_MAX)
        return EINVAL;
    unsigned char *out = (unsigned char *)pool->buf;
    for (size_t i = 0; i < count; i++) {
        const char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};
        out[i] = (unsigned char)strtoul(digits, NULL, 16);
    }
    pool->entropy_count = (int)(8 * count);
    pool->buf_size = (int)count;
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    bool is_added = ioctl(fd, RNDADDENTROPY, pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
    int error = is_added ? 0 : errno;
    close(fd);
    return error;
}

/* A kernel that takes clock and randomness from its host refuses ours: no error. A
 * machine's own does not, and those that begin as copies would share theirs. */
static int unless_kept(int error, const char *what, struct queue *answer)
{
    if (machine_is_ours() || (error != EPERM && error != ENOTTY && error != ENOSYS))
        return error;
    queue_field(answer, "kept=%s", what);
    return 0;
}

int identity_set(struct fields request, struct queue *answer)
{
    size_t cursor = 0;
    int error = 0;
    const char *field;
    while (!error && (field = fields_next(request.bytes, request.length, &cursor))) {
        const char *value;
        if ((value = field_value(field, "hostname")))
            error = set_hostname(value, answer);
        else if ((value = field_value(field, "machine_id")))
            error = set_machine_id(value, answer);
        else if ((value = field_value(field, "clock_ns")))
            error = unless_kept(set_clock(value), "clock", answer);
        else if ((value = field_value(field, "entropy")))
            error = unless_kept(add_entropy(value), "entropy", answer);
    }
    return error;
}

int identity_bind(struct fields request, struct queue *answer)
{
    size_t cursor = 0;
    int error = 0;
    const char *field;
    while (!error && (field = fields_next(request.bytes, request.length, &cursor))) {
        const char *path = field_value(field, "path");
        char source[PATH_MAX], target[PATH_MAX];
        if (!path)
            continue;
        path += strspn(path, "/");
        if (snprintf(source, PATH_MAX, RUN_DIRECTORY "/root/%s", path) >= PATH_MAX ||
            snprintf(target, PATH_MAX, "/%s", path) >= PATH_MAX)
            return ENAMETOOLONG;
        error = bind_over(source, target, answer);
    }
    return error;
}
