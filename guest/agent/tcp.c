/* A connected socket as a stream: what is read goes out, what comes in is written, and each
 * direction ends by itself. `dial` and `accept` become this. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp.h"

struct tcp {
    int fd, polled_at;
    struct queue input;
    int error;            /* what a write met; what was received before is read first */
    bool has_ended_input; /* everything was written and the server told so, or nobody reads */
};

static void release(struct stream *stream)
{
    struct tcp *tcp = stream->state;
    close(tcp->fd);
    queue_free(&tcp->input);
    free(tcp);
    stream->state = NULL;
}

static void drop_input(struct stream *stream)
{
    struct tcp *tcp = stream->state;
    size_t unread = queue_length(&tcp->input);
    queue_take(&tcp->input, unread);
    stream_consumed(stream, unread);
}

/* Write what has come in; once that has failed, drop it. */
static void feed(struct stream *stream)
{
    struct tcp *tcp = stream->state;
    while (!tcp->has_ended_input && queue_length(&tcp->input)) {
        ssize_t put = send(tcp->fd, queue_head(&tcp->input), queue_length(&tcp->input),
                           MSG_NOSIGNAL | MSG_DONTWAIT);
        if (put < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (put < 0) {
            tcp->error = errno == EPIPE ? 0 : errno; /* a server may close before it has read all */
            tcp->has_ended_input = true;
            break;
        }
        queue_take(&tcp->input, (size_t)put);
        stream_consumed(stream, (size_t)put);
    }
    if (tcp->has_ended_input) {
        drop_input(stream);
    } else if (stream->in.has_ended) {
        shutdown(tcp->fd, SHUT_WR);
        tcp->has_ended_input = true;
    }
}

bool port_of(struct fields request, uint16_t *port)
{
    const char *text = fields_get(request.bytes, request.length, "port");
    char *end = NULL;
    unsigned long number = text && isdigit((unsigned char)*text) ? strtoul(text, &end, 10) : 0;
    *port = (uint16_t)number;
    return end && !*end && number <= UINT16_MAX;
}

bool tcp_begin(struct stream *stream, int fd, struct queue *input)
{
    struct tcp *tcp = calloc(1, sizeof *tcp);
    if (!tcp)
        return false;
    const int on = 1; /* each write is a message of somebody's: none waits for the next */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    tcp->fd = fd;
    tcp->polled_at = -1;
    if (input) {
        tcp->input = *input;
        *input = (struct queue){0};
    }
    stream->state = tcp;
    stream->service = &tcp_service;
    stream_send_eof(stream, WIRE_ERR); /* says that it is connected */
    feed(stream);
    return true;
}

static void tcp_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    struct tcp *tcp = stream->state;
    queue_append(&tcp->input, bytes, count);
    feed(stream);
}

/* Without an end before it this is no end: the server must not take what it has for all. */
static void tcp_abandon(struct stream *stream)
{
    const struct tcp *tcp = stream->state;
    const struct linger at_once = {.l_onoff = 1};
    if (!stream->in.has_ended || queue_length(&tcp->input))
        setsockopt(tcp->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    release(stream);
}

static bool is_read(const struct stream *stream)
{
    return !stream->out[0].has_ended && stream_room(stream, WIRE_OUT) > 0;
}

static void tcp_watch(struct stream *stream, struct poll_set *set)
{
    struct tcp *tcp = stream->state;
    short events = (is_read(stream) ? POLLIN : 0) | (queue_length(&tcp->input) ? POLLOUT : 0);
    /* Asked for nothing, poll would tell of an end again and again. */
    tcp->polled_at = events ? poll_add(set, tcp->fd, events) : -1;
}

/* Pass on what was received. False when the connection has broken, and with it the stream. */
static bool pass_on(struct stream *stream)
{
    struct tcp *tcp = stream->state;
    ssize_t got = stream_send_from(stream, WIRE_OUT, tcp->fd, SIZE_MAX);
    if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)))
        return true;
    int error = got < 0 ? errno : tcp->error;
    if (!error) {
        stream_send_eof(stream, WIRE_OUT);
        return true;
    }
    release(stream);
    stream_reset(stream, strerror(error));
    return false;
}

static void tcp_pump(struct stream *stream, const struct poll_set *set)
{
    const struct tcp *tcp = stream->state;
    if (poll_is_ready(set, tcp->polled_at)) {
        feed(stream);
        if (is_read(stream) && !pass_on(stream))
            return;
    }
    if (stream->out[0].has_ended && tcp->has_ended_input) {
        release(stream);
        stream_exit(stream, 0, NULL);
    }
}

const struct service tcp_service = {
    .word = "tcp",
    .data = tcp_data,
    .eof = feed,
    .abandon = tcp_abandon,
    .watch = tcp_watch,
    .pump = tcp_pump,
};
