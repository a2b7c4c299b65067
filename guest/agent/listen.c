/* Streams `listen` and `accept`: servers of the far end's on the guest's loopback. Who has
 * connected is told by a line, and waits for a while to be accepted: to become a stream. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp.h"

#define PATIENCE_NS (10 * 1000000000LL)
#define BACKLOG 128
#define WAITING_MAX 16 /* of one listener */
#define LINE_MAX_BYTES 96

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

struct waiting {
    uint64_t id; /* 0: the place is free */
    int fd;
    int64_t give_up_ns;
};

struct listening {
    int fd, polled_at;
    struct waiting waiting[WAITING_MAX];
};

static uint64_t last_id;

static void drop(struct waiting *waiting)
{
    if (waiting->id)
        close(waiting->fd);
    waiting->id = 0;
}

static void release(struct stream *stream)
{
    struct listening *listening = stream->state;
    for (size_t i = 0; i < WAITING_MAX; i++)
        drop(&listening->waiting[i]);
    close(listening->fd);
    free(listening);
    stream->state = NULL;
}

static bool is_loopback(const union address *address)
{
    if (address->any.sa_family == AF_INET)
        return ntohl(address->four.sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&address->six.sin6_addr);
}

/* Returns a socket that listens, or -1 with errno. */
static int listen_at(const char *host, uint16_t port)
{
    union address address = {0};
    const int on = 1;
    socklen_t length = sizeof address.four;
    if (inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1",
                  &address.four.sin_addr) == 1) {
        address.four.sin_family = AF_INET;
        address.four.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, host, &address.six.sin6_addr) == 1) {
        address.six.sin6_family = AF_INET6;
        address.six.sin6_port = htons(port);
        length = sizeof address.six;
    }
    errno = EADDRNOTAVAIL;
    if (!address.any.sa_family || !is_loopback(&address))
        return -1;
    int fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        bind(fd, &address.any, length) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return -1;
}

static uint16_t port_in(const union address *address)
{
    return ntohs(address->any.sa_family == AF_INET ? address->four.sin_port
                                                   : address->six.sin6_port);
}

static void tell_port(struct stream *stream)
{
    const struct listening *listening = stream->state;
    char line[LINE_MAX_BYTES];
    union address address = {0};
    socklen_t length = sizeof address;
    getsockname(listening->fd, &address.any, &length);
    int count = snprintf(line, sizeof line, "%u\n", port_in(&address));
    stream_send(stream, WIRE_OUT, line, (size_t)count);
}

static const char *listen_open(struct stream *stream, struct fields request)
{
    const char *host = fields_get(request.bytes, request.length, "host");
    uint16_t port;
    if (!host || !port_of(request, &port))
        return "listen without a place";
    struct listening *listening = calloc(1, sizeof *listening);
    if (!listening)
        return "out of memory";
    listening->polled_at = -1;
    listening->fd = listen_at(host, port);
    if (listening->fd < 0) {
        int error = errno;
        free(listening);
        stream_fail(stream, error);
        return NULL;
    }
    stream->state = listening;
    tell_port(stream);
    return NULL;
}

static struct waiting *free_place(struct listening *listening)
{
    for (size_t i = 0; i < WAITING_MAX; i++)
        if (!listening->waiting[i].id)
            return &listening->waiting[i];
    return NULL;
}

static void listen_watch(struct stream *stream, struct poll_set *set)
{
    struct listening *listening = stream->state;
    bool is_wanted = free_place(listening) && stream_room(stream, WIRE_OUT) >= LINE_MAX_BYTES;
    listening->polled_at = is_wanted ? poll_add(set, listening->fd, POLLIN) : -1;
    for (size_t i = 0; i < WAITING_MAX; i++)
        if (listening->waiting[i].id)
            poll_by(set, listening->waiting[i].give_up_ns);
}

static void listen_pump(struct stream *stream, const struct poll_set *set)
{
    struct listening *listening = stream->state;
    union address peer = {0};
    socklen_t length = sizeof peer;
    for (size_t i = 0; i < WAITING_MAX; i++)
        if (listening->waiting[i].id && listening->waiting[i].give_up_ns <= now_ns())
            drop(&listening->waiting[i]);
    struct waiting *place = free_place(listening);
    if (!place || !poll_is_ready(set, listening->polled_at))
        return;
    int fd = accept4(listening->fd, &peer.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    *place = (struct waiting){++last_id, fd, now_ns() + PATIENCE_NS};
    char host[INET6_ADDRSTRLEN] = "?", line[LINE_MAX_BYTES];
    const void *number = peer.any.sa_family == AF_INET ? (void *)&peer.four.sin_addr
                                                       : (void *)&peer.six.sin6_addr;
    inet_ntop(peer.any.sa_family, number, host, sizeof host);
    int count = snprintf(line, sizeof line, "%llu %s %u\n", (unsigned long long)place->id, host,
                         port_in(&peer));
    stream_send(stream, WIRE_OUT, line, (size_t)count);
}

static void listen_eof(struct stream *stream)
{
    release(stream);
    stream_send_eof(stream, WIRE_OUT);
    stream_exit(stream, 0, NULL);
}

/* --- accept --- */

static struct waiting *find(struct session *session, uint64_t id)
{
    for (size_t i = 0; id && i < WIRE_STREAMS_MAX; i++) {
        struct stream *stream = &session->streams[i];
        struct listening *listening = stream->state;
        for (size_t j = 0; stream->id && stream->service == &listen_service && j < WAITING_MAX;
             j++)
            if (listening->waiting[j].id == id)
                return &listening->waiting[j];
    }
    return NULL;
}

static const char *accept_open(struct stream *stream, struct fields request)
{
    const char *text = fields_get(request.bytes, request.length, "id");
    struct waiting *waiting = text ? find(stream->session, strtoull(text, NULL, 10)) : NULL;
    if (!waiting)
        return "no such connection waits";
    if (!tcp_begin(stream, waiting->fd, NULL))
        return "out of memory";
    waiting->id = 0; /* it is the stream's */
    return NULL;
}

const struct service listen_service = {
    .word = "listen",
    .open = listen_open,
    .eof = listen_eof,
    .abandon = release,
    .watch = listen_watch,
    .pump = listen_pump,
};

const struct service accept_service = {.word = "accept", .open = accept_open};
