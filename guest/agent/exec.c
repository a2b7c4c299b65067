/* Streams `exec`, a process with pipes or a terminal, leader of a session of its own, and
 * `sftp`, one with pipes that is the agent's. */
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

#include "machine.h"
#include "terminal.h"

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
    bool has_terminal; /* the first output and the input are its master's */
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

/* Make pipes as a request says. Returns 0 or an errno; `ends` are the caller's to close. */
static int open_pipes(struct exec *exec, bool has_input, int ends[3])
{
    bool has_ends;
    if (has_input)
        has_ends = open_pipe(1, &exec->input_fd, &ends[0]);
    else
        has_ends = (ends[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;
    has_ends = has_ends && open_pipe(0, &exec->outputs[0].fd, &ends[1]) &&
               open_pipe(0, &exec->outputs[1].fd, &ends[2]);
    return has_ends ? 0 : errno;
}

static int open_terminal(struct exec *exec, struct fields request, int ends[3])
{
    exec->has_terminal = true;
    int error = terminal_open(request, &exec->outputs[0].fd, &ends[0]);
    if (error)
        return error;
    exec->input_fd = fcntl(exec->outputs[0].fd, F_DUPFD_CLOEXEC, 3);
    for (int i = 1; i < 3; i++)
        ends[i] = fcntl(ends[0], F_DUPFD_CLOEXEC, 3);
    return exec->input_fd < 0 || ends[1] < 0 || ends[2] < 0 ? errno : 0;
}

/* Returns 0 or an errno. */
static int start(struct exec *exec, struct fields request, bool is_sftp)
{
    const char *input = fields_get(request.bytes, request.length, "stdin");
    int ends[3] = {-1, -1, -1};
    int error = input && strcmp(input, "terminal") == 0
                    ? open_terminal(exec, request, ends)
                    : open_pipes(exec, is_sftp || (input && strcmp(input, "open") == 0), ends);
    if (!error)
        error = is_sftp ? sftp_start(ends, &exec->pid)
                        : program_start(request, ends, exec->has_terminal, &exec->pid);
    for (int i = 0; i < 3; i++)
        close_fd(&ends[i]);
    return error;
}

static void say_why_not(struct stream *stream, const char *program, int error, bool has_terminal)
{
    char line[512];
    int length = snprintf(line, sizeof line, "mags: cannot run %.300s: %s%s\n", program,
                          strerror(error), has_terminal ? "\r" : "");
    stream_send(stream, has_terminal ? WIRE_OUT : WIRE_ERR, line, (size_t)length);
    stream_send_eof(stream, WIRE_OUT);
    stream_send_eof(stream, WIRE_ERR);
    bool is_there = error == EACCES || error == ENOEXEC || error == EPERM;
    stream_exit(stream, (is_there ? 126u : 127u) << 8, NULL);
}

static struct exec *make(void)
{
    struct exec *exec = calloc(1, sizeof *exec);
    if (!exec)
        return NULL;
    exec->input_fd = exec->input_polled_at = -1;
    for (int i = 0; i < 2; i++)
        exec->outputs[i] = (struct output){.fd = -1, .polled_at = -1, .left = NO_LIMIT};
    return exec;
}

static const char *exec_open(struct stream *stream, struct fields request)
{
    const char *program = fields_get(request.bytes, request.length, "arg");
    if (!program)
        return "exec of nothing";
    struct exec *exec = make();
    if (!exec)
        return "out of memory";
    stream->state = exec;
    int error = start(exec, request, false);
    if (error) {
        bool has_terminal = exec->has_terminal;
        release(stream);
        say_why_not(stream, program, error, has_terminal);
    } else if (exec->has_terminal) {
        stream_send_eof(stream, WIRE_ERR);
    }
    return NULL;
}

static const char *sftp_open(struct stream *stream, struct fields request)
{
    const struct fields nothing = {request.bytes, 0};
    struct exec *exec = make();
    if (!exec)
        return "out of memory";
    stream->state = exec;
    int error = start(exec, nothing, true);
    if (error) {
        release(stream);
        stream_fail(stream, error);
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

static void exec_eof(struct stream *stream)
{
    struct exec *exec = stream->state;
    int end = exec->has_terminal && exec->input_fd >= 0 ? terminal_end(exec->input_fd) : -1;
    const uint8_t typed = (uint8_t)end;
    if (end >= 0) /* a terminal has no end: its program is told as by whoever types it */
        queue_append(&exec->input, &typed, 1);
    feed(stream);
}

/* To whom a signal goes: as from the keyboard, or to the program. */
static pid_t group_of(const struct exec *exec)
{
    pid_t foreground = exec->has_terminal && exec->outputs[0].fd >= 0
                           ? terminal_foreground(exec->outputs[0].fd)
                           : 0;
    return foreground ? foreground : exec->pid;
}

static void exec_signal(struct stream *stream, int number)
{
    const struct exec *exec = stream->state;
    if (exec->pid)
        kill(-group_of(exec), number);
}

static void exec_resize(struct stream *stream, uint16_t columns, uint16_t rows)
{
    const struct exec *exec = stream->state;
    if (!exec->has_terminal || exec->outputs[0].fd < 0)
        return;
    terminal_resize(exec->outputs[0].fd, columns, rows);
    if (!machine_is_ours()) /* gVisor tells nobody */
        exec_signal(stream, SIGWINCH);
}

static void exec_abandon(struct stream *stream)
{
    const struct exec *exec = stream->state;
    pid_t leader = exec->pid, foreground = leader ? group_of(exec) : 0;
    bool has_terminal = exec->has_terminal;
    release(stream);
    if (leader && has_terminal)
        hangup_begin(leader, foreground);
    else if (leader)
        kill(-leader, SIGKILL);
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
    if (got > 0 && output->left)
        return;
    if (output->left || exec->has_terminal) {
        close_fd(&output->fd);
    } else { /* somebody may have it still */
        leftover_keep(output->fd);
        output->fd = -1;
    }
    stream_send_eof(stream, channel);
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

static bool is_exec(const struct stream *stream)
{
    return stream->id && (stream->service == &exec_service || stream->service == &sftp_service);
}

void exec_reaped(struct session *session, pid_t pid, int status)
{
    hangup_reaped(pid);
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        struct stream *stream = &session->streams[i];
        struct exec *exec = stream->state;
        if (is_exec(stream) && exec->pid == pid) {
            exec->pid = 0;
            exec->status = status;
            exec->drained_ns = now_ns() + DRAIN_NS;
        }
    }
}

void exec_kill_all(struct session *session)
{
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
        if (is_exec(&session->streams[i])) {
            const struct exec *exec = session->streams[i].state;
            if (exec->pid)
                kill(-exec->pid, SIGKILL);
        }
}

const struct service exec_service = {
    .word = "exec",
    .open = exec_open,
    .data = exec_data,
    .eof = exec_eof,
    .signal = exec_signal,
    .resize = exec_resize,
    .abandon = exec_abandon,
    .watch = exec_watch,
    .pump = exec_pump,
};

const struct service sftp_service = {
    .word = "sftp",
    .open = sftp_open,
    .data = exec_data,
    .eof = exec_eof,
    .abandon = exec_abandon,
    .watch = exec_watch,
    .pump = exec_pump,
};
