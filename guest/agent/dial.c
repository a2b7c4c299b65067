/* Stream `dial`: a TCP connection to a server that this guest can reach. Each address of a
 * name is tried in turn. Names are looked up by a process of its own: the C library waits
 * for the answers of name servers, and the agent must not. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp.h"

#define PATIENCE_NS (10 * 1000000000LL)
#define PATIENCE_S 10
#define ADDRESSES_MAX 8
#define NAME_MAX_CHARS 253

union address {
    struct sockaddr any;
    struct sockaddr_in four;
    struct sockaddr_in6 six;
};

struct dial {
    int fd;     /* that is being connected, or -1 */
    int lookup; /* where the addresses of a name come from, or -1 */
    int polled_at;
    int64_t give_up_ns;
    int error; /* of the first address that failed */
    union address addresses[ADDRESSES_MAX];
    size_t count, next;
    struct queue input;
};

static void release(struct stream *stream)
{
    struct dial *dial = stream->state;
    if (dial->fd >= 0)
        close(dial->fd);
    if (dial->lookup >= 0)
        close(dial->lookup);
    queue_free(&dial->input);
    free(dial);
    stream->state = NULL;
}

static void fail(struct stream *stream, int error)
{
    release(stream);
    stream_fail(stream, error);
}

/* --- addresses --- */

/* Enter an address that is written in numbers. False when it is none. */
static bool add_numeric(struct dial *dial, const char *host, uint16_t port)
{
    union address *address = &dial->addresses[dial->count];
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, host, &address->four.sin_addr) == 1) {
        address->four.sin_family = AF_INET;
        address->four.sin_port = htons(port);
    } else if (inet_pton(AF_INET6, host, &address->six.sin6_addr) == 1) {
        address->six.sin6_family = AF_INET6;
        address->six.sin6_port = htons(port);
    } else {
        return false;
    }
    dial->count++;
    return true;
}

/* The process: tell of each address. It ends when nobody waits for it any more. */
static _Noreturn void look_up(const char *host, uint16_t port)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    char service[8];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGALRM, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    alarm(PATIENCE_S);
    snprintf(service, sizeof service, "%u", port);
    int unknown = getaddrinfo(host, service, &hints, &found);
    for (int left = ADDRESSES_MAX; !unknown && found && left; found = found->ai_next, left--) {
        union address address = {0};
        if (found->ai_addrlen > sizeof address)
            continue;
        memcpy(&address, found->ai_addr, found->ai_addrlen);
        if (write(STDOUT_FILENO, &address, sizeof address) != sizeof address)
            _exit(1);
    }
    _exit(0);
}

/* Returns 0 or an errno. */
static int begin_lookup(struct dial *dial, const char *host, uint16_t port)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return errno;
    pid_t pid = fork();
    if (pid == 0) {
        stand_alone(STDIN_FILENO, ends[1]);
        look_up(host, port);
    }
    int error = pid < 0 ? errno : 0;
    close(ends[1]);
    if (error)
        close(ends[0]);
    else
        dial->lookup = ends[0];
    return error;
}

/* --- connecting --- */

static int start_connecting(const union address *address)
{
    int fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    socklen_t length =
        address->any.sa_family == AF_INET ? sizeof address->four : sizeof address->six;
    if (connect(fd, &address->any, length) == 0 || errno == EINPROGRESS)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

static void note(struct dial *dial, int error)
{
    if (!dial->error)
        dial->error = error;
}

/* Begin with the next address. False, and the stream is over, when there is none. */
static bool try_next(struct stream *stream)
{
    struct dial *dial = stream->state;
    while (dial->next < dial->count) {
        dial->fd = start_connecting(&dial->addresses[dial->next++]);
        if (dial->fd >= 0)
            return true;
        note(dial, errno);
    }
    fail(stream, dial->error ? dial->error : EHOSTUNREACH);
    return false;
}

/* See what became of an attempt. */
static void conclude(struct stream *stream)
{
    struct dial *dial = stream->state;
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(dial->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        error = errno;
    if (error) {
        note(dial, error);
        close(dial->fd);
        dial->fd = -1;
        try_next(stream);
        return;
    }
    if (!tcp_begin(stream, dial->fd, &dial->input)) {
        fail(stream, ENOMEM);
        return;
    }
    free(dial); /* the rest is the connection's now */
}

/* Take what the process has told. */
static void take_addresses(struct stream *stream)
{
    struct dial *dial = stream->state;
    union address told[ADDRESSES_MAX];
    ssize_t got = read(dial->lookup, told, sizeof told);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    size_t room = ADDRESSES_MAX - dial->count;
    size_t count = got > 0 ? (size_t)got / sizeof *told : 0;
    count = count < room ? count : room;
    memcpy(dial->addresses + dial->count, told, count * sizeof *told);
    dial->count += count;
    if (got > 0)
        return;
    close(dial->lookup);
    dial->lookup = -1;
    try_next(stream);
}

/* --- the stream --- */

/* Returns 0 or an errno. */
static int find_addresses(struct dial *dial, const char *host, uint16_t port)
{
    if (strcmp(host, "localhost") == 0)
        return add_numeric(dial, "127.0.0.1", port) && add_numeric(dial, "::1", port) ? 0 : EINVAL;
    return add_numeric(dial, host, port) ? 0 : begin_lookup(dial, host, port);
}

static const char *dial_open(struct stream *stream, struct fields request)
{
    const char *host = fields_get(request.bytes, request.length, "host");
    uint16_t port;
    if (!host || !*host || strlen(host) > NAME_MAX_CHARS)
        return "dial of no host";
    if (!port_of(request, &port) || !port)
        return "dial of no port";
    struct dial *dial = calloc(1, sizeof *dial);
    if (!dial)
        return "out of memory";
    dial->fd = dial->lookup = dial->polled_at = -1;
    dial->give_up_ns = now_ns() + PATIENCE_NS;
    stream->state = dial;
    int error = find_addresses(dial, host, port);
    if (error)
        fail(stream, error);
    else if (dial->lookup < 0)
        try_next(stream);
    return NULL;
}

static void dial_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    struct dial *dial = stream->state;
    queue_append(&dial->input, bytes, count);
}

static void dial_watch(struct stream *stream, struct poll_set *set)
{
    struct dial *dial = stream->state;
    bool is_looking = dial->lookup >= 0;
    dial->polled_at = poll_add(set, is_looking ? dial->lookup : dial->fd,
                               is_looking ? POLLIN : POLLOUT);
    poll_by(set, dial->give_up_ns);
}

static void dial_pump(struct stream *stream, const struct poll_set *set)
{
    const struct dial *dial = stream->state;
    if (poll_is_ready(set, dial->polled_at)) {
        if (dial->lookup >= 0)
            take_addresses(stream);
        else
            conclude(stream);
    } else if (now_ns() >= dial->give_up_ns) {
        fail(stream, ETIMEDOUT);
    }
}

const struct service dial_service = {
    .word = "dial",
    .open = dial_open,
    .data = dial_data,
    .abandon = release,
    .watch = dial_watch,
    .pump = dial_pump,
};
