/* Stream `exec`: a process with pipes, leader of a session of its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "services.h"

/* How long the pipes of a process that has ended may go on bringing output of
 * others that hold them: enough for a filter that it started, and a daemon that
 * it left behind does not hold the stream. */
#define DRAIN_NS (200 * 1000000LL)
#define NO_LIMIT SIZE_MAX

struct output {
    int fd; /* -1: it has ended */
    int polled_at;
    size_t left; /* once the drain is over: what was still in the pipe then */
};

struct exec {
    pid_t pid; /* 0: it has ended */
    int status;
    int64_t drained_ns; /* set when it has ended */
    struct output outputs[2];
    int input_fd; /* -1: none, or nobody reads it any more */
    int input_polled_at;
    struct queue input;
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void release(struct stream *stream)
{
    struct exec *exec = stream->state;
    close_fd(&exec->outputs[0].fd);
    close_fd(&exec->outputs[1].fd);
    close_fd(&exec->input_fd);
    queue_free(&exec->input);
    free(exec);
    stream->state = NULL;
}

/* A pipe whose end `ours` (0 reads, 1 writes) does not block. */
static bool open_pipe(int ours, int *mine, int *its)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    *mine = ends[ours];
    *its = ends[1 - ours];
    return fcntl(*mine, F_SETFL, O_NONBLOCK) == 0;
}

/* Returns 0 or an errno. */
static int start(struct exec *exec, struct fields request)
{
    const char *input = fields_get(request.bytes, request.length, "stdin");
    int ends[3] = {-1, -1, -1};
    bool has_ends;
    if (input && strcmp(input, "open") == 0)
        has_ends = open_pipe(1, &exec->input_fd, &ends[0]);
    else
        has_ends = (ends[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;
    has_ends = has_ends && open_pipe(0, &exec->outputs[0].fd, &ends[1]) &&
               open_pipe(0, &exec->outputs[1].fd, &ends[2]);
    int error = has_ends ? program_start(request, ends, &exec->pid) : errno;
    for (int i = 0; i < 3; i++)
        close_fd(&ends[i]);
    return error;
}

static void say_why_not(struct stream *stream, const char *program, int error)
{
    char line[512];
    int length = snprintf(line, sizeof line, "mags: cannot run %.300s: %s\n", program,
                          strerror(error));
    stream_send(stream, WIRE_ERR, line, (size_t)length);
    stream_send_eof(stream, WIRE_OUT);
    stream_send_eof(stream, WIRE_ERR);
    bool is_there = error == EACCES || error == ENOEXEC || error == EPERM;
    stream_exit(stream, (is_there ? 126u : 127u) << 8, NULL);
}

static const char *exec_open(struct stream *stream, struct fields request)
{
    const char *program = fields_get(request.bytes, request.length, "arg");
    if (!program)
        return "exec of nothing";
    struct exec *exec = calloc(1, sizeof *exec);
    if (!exec)
        return "out of memory";
    exec->input_fd = exec->input_polled_at = -1;
    for (int i = 0; i < 2; i++)
        exec->outputs[i] = (struct output){.fd = -1, .polled_at = -1, .left = NO_LIMIT};
    stream->state = exec;
    int error = start(exec, request);
    if (error) {
        release(stream);
        say_why_not(stream, program, error);
    }
    return NULL;
}

/* Give the process what waits for it; drop it when nobody will read it. */
static void feed(struct stream *stream)
{
    struct exec *exec = stream->state;
    while (exec->input_fd >= 0 && queue_length(&exec->input)) {
        ssize_t put = write(exec->input_fd, queue_head(&exec->input), queue_length(&exec->input));
        if (put < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (put < 0) {
            close_fd(&exec->input_fd);
            break;
        }
        queue_take(&exec->input, (size_t)put);
        stream_consumed(stream, (size_t)put);
    }
    if (exec->input_fd >= 0 && stream->in.has_ended)
        close_fd(&exec->input_fd);
    size_t unread = queue_length(&exec->input);
    queue_take(&exec->input, unread);
    stream_consumed(stream, unread);
}

static void exec_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    struct exec *exec = stream->state;
    queue_append(&exec->input, bytes, count);
    feed(stream);
}

static void exec_signal(struct stream *stream, int number)
{
    const struct exec *exec = stream->state;
    if (exec->pid)
        kill(-exec->pid, number);
}

static void exec_abandon(struct stream *stream)
{
    exec_signal(stream, SIGKILL);
    release(stream);
}

static void exec_watch(struct stream *stream, struct poll_set *set)
{
    struct exec *exec = stream->state;
    for (int i = 0; i < 2; i++) {
        struct output *output = &exec->outputs[i];
        bool is_wanted = output->fd >= 0 && stream_room(stream, WIRE_OUT + i) > 0;
        output->polled_at = is_wanted ? poll_add(set, output->fd, POLLIN) : -1;
    }
    bool has_input = exec->input_fd >= 0 && queue_length(&exec->input);
    exec->input_polled_at = has_input ? poll_add(set, exec->input_fd, POLLOUT) : -1;
    if (!exec->pid && exec->outputs[0].left == NO_LIMIT)
        poll_by(set, exec->drained_ns);
}

static void pump_output(struct stream *stream, int which)
{
    struct exec *exec = stream->state;
    struct output *output = &exec->outputs[which];
    enum wire_channel channel = WIRE_OUT + which;
    if (output->fd < 0 || (output->left && !stream_room(stream, channel)))
        return;
    ssize_t got = output->left ? stream_send_from(stream, channel, output->fd, output->left) : 0;
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got > 0 && output->left != NO_LIMIT)
        output->left -= (size_t)got;
    if (got <= 0 || output->left == 0) {
        close_fd(&output->fd);
        stream_send_eof(stream, channel);
    }
}

/* The drain is over: what the pipes hold now is sent, however long the far end
 * takes to accept it, and nothing that is written later. */
static void limit_outputs(struct exec *exec)
{
    for (int i = 0; i < 2; i++) {
        int held = 0;
        if (exec->outputs[i].fd >= 0 && ioctl(exec->outputs[i].fd, FIONREAD, &held) < 0)
            held = 0;
        exec->outputs[i].left = (size_t)held;
    }
}

static void exec_pump(struct stream *stream, const struct poll_set *set)
{
    struct exec *exec = stream->state;
    if (poll_is_ready(set, exec->input_polled_at))
        feed(stream);
    bool is_drained = !exec->pid && now_ns() >= exec->drained_ns;
    if (is_drained && exec->outputs[0].left == NO_LIMIT)
        limit_outputs(exec);
    for (int i = 0; i < 2; i++)
        if (is_drained || poll_is_ready(set, exec->outputs[i].polled_at))
            pump_output(stream, i);
    if (!exec->pid && exec->outputs[0].fd < 0 && exec->outputs[1].fd < 0) {
        uint64_t status = (uint64_t)exec->status;
        release(stream);
        stream_exit(stream, status, NULL);
    }
}

void exec_reaped(struct session *session, pid_t pid, int status)
{
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        struct stream *stream = &session->streams[i];
        struct exec *exec = stream->state;
        if (stream->id && stream->service == &exec_service && exec->pid == pid) {
            exec->pid = 0;
            exec->status = status;
            exec->drained_ns = now_ns() + DRAIN_NS;
        }
    }
}

void exec_kill_all(struct session *session)
{
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
        if (session->streams[i].id && session->streams[i].service == &exec_service)
            exec_signal(&session->streams[i], SIGKILL);
}

const struct service exec_service = {
    .word = "exec",
    .open = exec_open,
    .data = exec_data,
    .eof = feed,
    .signal = exec_signal,
    .abandon = exec_abandon,
    .watch = exec_watch,
    .pump = exec_pump,
};
