/* Stream `freeze`: the machine's disk held still, and let go when the stream's input
 * ends, when the stream is reset, or at its deadline. A process of its own does it: the
 * agent itself may wait for a write to the disk. Each byte that comes in asks for one
 * thing, and the same byte is the answer when it is done. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/fs.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine.h"

#define DEADLINE_MS_MAX 60000ul

/* Smaller free places are not given back: each would be one more piece of the image, and a
 * copy of the image takes as long as there are pieces. */
#define TRIM_BYTES (1ull << 20)

/* What is asked for. */
enum { SYNC = 's', FREEZE = 'f' };

/* How the process tells that it has ended, the errno behind it. */
enum { ENDED = 'E' };

struct freeze {
    int fd; /* to the process; closed it thaws */
    int polled_at;
};

/* --- the process --- */

static void tell(int fd, char what, int error)
{
    char message[] = {what, (char)error};
    ssize_t put = write(fd, message, sizeof message);
    (void)put; /* the agent may have gone */
}

/* Hold the disk until something comes or the time is up. 0 or an errno. */
static int hold(int disk, int fd, int deadline_ms)
{
    if (ioctl(disk, FIFREEZE, 0) < 0)
        return errno;
    tell(fd, FREEZE, 0);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    bool is_late = poll(&entry, 1, deadline_ms) == 0;
    ioctl(disk, FITHAW, 0);
    return is_late ? ETIMEDOUT : 0;
}

/* Give back what is free, and have the rest on the disk. 0 or an errno. */
static int write_out(int disk)
{
    struct fstrim_range all = {.len = ~0ull, .minlen = TRIM_BYTES};
    ioctl(disk, FITRIM, &all); /* what is not given back takes room, and no more */
    return syncfs(disk) < 0 ? errno : 0;
}

static _Noreturn void serve(int deadline_ms)
{
    const struct sched_param first = {.sched_priority = 1};
    const int disk = STDIN_FILENO, fd = STDOUT_FILENO;
    char what;
    int error = 0;
    sched_setscheduler(0, SCHED_FIFO, &first);
    while (!error && recv(fd, &what, 1, 0) == 1) {
        if (what == FREEZE)
            error = hold(disk, fd, deadline_ms);
        else if ((error = write_out(disk)) == 0)
            tell(fd, what, 0);
    }
    tell(fd, ENDED, error);
    _exit(0);
}

/* --- the stream --- */

/* Start the process. Returns 0 or an errno. */
static int begin(int disk, int deadline_ms, int *ours)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return errno;
    pid_t pid = fork();
    if (pid == 0) {
        /* Nothing of the agent's stays open: not the ends of pipes, whose others wait. */
        stand_alone(disk, ends[1]);
        serve(deadline_ms);
    }
    int error = pid < 0 ? errno : 0;
    close(ends[1]);
    if (error)
        close(ends[0]);
    *ours = ends[0];
    return error;
}

static const char *freeze_open(struct stream *stream, struct fields request)
{
    const char *text = fields_get(request.bytes, request.length, "deadline_ms");
    char *end = NULL;
    unsigned long deadline_ms = text ? strtoul(text, &end, 10) : 0;
    if (!end || *end || deadline_ms < 1 || deadline_ms > DEADLINE_MS_MAX)
        return "freeze without a deadline";
    int disk = root_disk();
    struct freeze *freeze = disk < 0 ? NULL : malloc(sizeof *freeze);
    int error = freeze ? 0 : disk < 0 ? ENODEV : ENOMEM;
    if (!error) {
        freeze->polled_at = -1;
        error = begin(disk, (int)deadline_ms, &freeze->fd);
    }
    if (error) {
        free(freeze);
        stream_fail(stream, error);
        return NULL;
    }
    stream->state = freeze;
    return NULL;
}

static void freeze_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    const struct freeze *freeze = stream->state;
    for (size_t i = 0; i < count; i++)
        if (bytes[i] == SYNC || bytes[i] == FREEZE)
            send(freeze->fd, bytes + i, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    stream_consumed(stream, count);
}

static void freeze_eof(struct stream *stream)
{
    const struct freeze *freeze = stream->state;
    shutdown(freeze->fd, SHUT_WR);
}

static void freeze_abandon(struct stream *stream)
{
    struct freeze *freeze = stream->state;
    close(freeze->fd);
    free(freeze);
}

static void freeze_watch(struct stream *stream, struct poll_set *set)
{
    struct freeze *freeze = stream->state;
    freeze->polled_at = poll_add(set, freeze->fd, POLLIN);
}

static void over(struct stream *stream, int error)
{
    freeze_abandon(stream);
    if (error)
        stream_fail(stream, error);
    else
        stream_exit(stream, 0, NULL);
}

static void freeze_pump(struct stream *stream, const struct poll_set *set)
{
    const struct freeze *freeze = stream->state;
    if (!poll_is_ready(set, freeze->polled_at))
        return;
    char message[2];
    ssize_t got = recv(freeze->fd, message, sizeof message, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got != sizeof message) {
        /* Somebody has killed it: it may have left the disk as it was then. */
        ioctl(root_disk(), FITHAW, 0);
        over(stream, EINTR);
        return;
    }
    if (message[0] == ENDED)
        over(stream, message[1]);
    else if (stream_room(stream, WIRE_OUT))
        stream_send(stream, WIRE_OUT, message, 1);
}

const struct service freeze_service = {
    .word = "freeze",
    .open = freeze_open,
    .data = freeze_data,
    .eof = freeze_eof,
    .abandon = freeze_abandon,
    .watch = freeze_watch,
    .pump = freeze_pump,
};
