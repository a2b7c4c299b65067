/* The shim's loop: sockets to and from the core's queues, and what wakes it. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES (128u * 1024u)
#define SEND_BYTES (1u << 20)
#define LAST_WORDS_BYTES (4u << 20) /* what is still read when the engine has ended */
#define ENGINE_WAIT_MS 3000u        /* for the engine's end after its link's */

enum { AT_LISTENER, AT_CHILDREN, AT_FENCE, AT_LINK, AT_ERRORS, AT_MONITOR, AT_CONNECTIONS };

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
}

/* Read once into `queue`. False when the peer has gone. */
static bool receive(int socket, struct queue *queue)
{
    ssize_t count = recv(socket, queue_reserve(queue, CHUNK_BYTES), CHUNK_BYTES, MSG_DONTWAIT);
    if (count > 0)
        queue_commit(queue, (size_t)count);
    return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
}

/* Send from the head of `queue`; how many bytes went, or -1 when the peer has gone. */
static ssize_t transmit(int socket, const struct queue *queue, bool *is_full)
{
    size_t count = queue_length(queue) < SEND_BYTES ? queue_length(queue) : SEND_BYTES;
    ssize_t sent = send(socket, queue_head(queue), count, MSG_DONTWAIT | MSG_NOSIGNAL);
    *is_full = sent < (ssize_t)count;
    return sent < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : sent;
}

void loop_connect(struct shim *shim, int socket, bool is_first)
{
    struct connection *connection = core_connect(&shim->core, is_first);
    if (!connection) {
        close(socket);
        return;
    }
    long index = connection - shim->core.connections;
    shim->sockets[index] = socket;
    shim->is_full[index] = false;
}

static void disconnect(struct shim *shim, int index)
{
    close(shim->sockets[index]);
    shim->sockets[index] = -1;
    shim->is_accepting = true;
    core_disconnect(&shim->core, &shim->core.connections[index]);
}

static void take_new(struct shim *shim)
{
    int socket = accept4(shim->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket >= 0)
        loop_connect(shim, socket, false);
    else if (errno == EMFILE || errno == ENFILE) /* until a connection has ended */
        shim->is_accepting = false;
}

static void read_link(struct shim *shim)
{
    shim->has_link_ended = !receive(shim->engine.link, &shim->core.from_agent);
    core_take_agent(&shim->core);
    if (shim->has_link_ended)
        shim->give_up_ms = monotonic_ms() + ENGINE_WAIT_MS;
}

void loop_drain_link(struct shim *shim)
{
    for (size_t total = 0; total < LAST_WORDS_BYTES && !shim->has_link_ended && !shim->core.end;) {
        size_t before = queue_length(&shim->core.from_agent);
        bool is_there = receive(shim->engine.link, &shim->core.from_agent);
        size_t count = queue_length(&shim->core.from_agent) - before;
        core_take_agent(&shim->core);
        if (!is_there || !count)
            return;
        total += count;
    }
}

static void flush(struct shim *shim)
{
    struct core *core = &shim->core;
    core_publish(core);
    if (queue_length(&core->to_agent) && !shim->is_link_full && !shim->has_link_ended) {
        ssize_t sent = transmit(shim->engine.link, &core->to_agent, &shim->is_link_full);
        if (sent > 0) /* a link that has gone is noticed by reading it */
            queue_take(&core->to_agent, (size_t)sent);
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *each = &core->connections[i];
        if (!each->is_open)
            continue;
        if (queue_length(&each->out) && !shim->is_full[i]) {
            ssize_t sent = transmit(shim->sockets[i], &each->out, &shim->is_full[i]);
            if (sent > 0)
                core_sent(each, (size_t)sent);
            each->is_broken |= sent < 0;
        }
        if (each->is_broken)
            disconnect(shim, i);
    }
}

/* Fill what to wait for. Descriptors of -1 are ignored by poll. */
static void arm(struct shim *shim, struct pollfd *polls)
{
    const struct core *core = &shim->core;
    bool has_link = shim->engine.link >= 0 && !shim->has_link_ended;
    polls[AT_LISTENER] = (struct pollfd){shim->is_accepting ? shim->listener : -1, POLLIN, 0};
    polls[AT_CHILDREN] = (struct pollfd){shim->children, POLLIN, 0};
    polls[AT_FENCE] = (struct pollfd){shim->fence, POLLIN, 0};
    polls[AT_LINK] = (struct pollfd){has_link ? shim->engine.link : -1, POLLIN, 0};
    if (queue_length(&core->to_agent))
        polls[AT_LINK].events |= POLLOUT;
    polls[AT_ERRORS] =
        (struct pollfd){shim->has_errors_ended ? -1 : shim->engine.errors, POLLIN, 0};
    polls[AT_MONITOR] = (struct pollfd){shim->plan.monitor, POLLIN, 0};
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        const struct connection *each = &core->connections[i];
        struct pollfd *at = &polls[AT_CONNECTIONS + i];
        *at = (struct pollfd){shim->sockets[i], 0, 0};
        if (shim->sockets[i] < 0)
            continue;
        if (core_may_read(each))
            at->events |= POLLIN;
        if (queue_length(&each->out))
            at->events |= POLLOUT;
    }
}

static int wait_ms(const struct shim *shim, uint64_t next_ms)
{
    if (shim->has_link_ended && shim->give_up_ms < next_ms)
        next_ms = shim->give_up_ms;
    if (next_ms == NEVER)
        return -1;
    if (next_ms <= shim->core.now_ms)
        return 0;
    uint64_t rest = next_ms - shim->core.now_ms;
    return rest < INT_MAX ? (int)rest : INT_MAX;
}

static void serve_connection(struct shim *shim, int index, short events)
{
    struct connection *connection = &shim->core.connections[index];
    if (events & (POLLOUT | POLLERR))
        shim->is_full[index] = false;
    if (!(events & (POLLIN | POLLHUP | POLLERR)))
        return;
    if (!receive(shim->sockets[index], &connection->in))
        connection->is_broken = true;
    else
        core_take_connection(&shim->core, connection);
}

/* What the engine says there is for nobody; it must not have to wait. */
static void drain_monitor(struct shim *shim)
{
    uint8_t ignored[4096];
    ssize_t count = recv(shim->plan.monitor, ignored, sizeof ignored, MSG_DONTWAIT);
    if (count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR)))
        return;
    close(shim->plan.monitor);
    shim->plan.monitor = -1;
}

static void serve(struct shim *shim, const struct pollfd *polls)
{
    uint8_t ignored[512];
    if (polls[AT_CHILDREN].revents) {
        while (read(shim->children, ignored, sizeof ignored) > 0)
            continue;
        engine_reap(&shim->engine);
    }
    if (polls[AT_FENCE].revents && read(shim->fence, ignored, 8) == 8)
        core_end(&shim->core, END_FENCED, "the fence was not renewed");
    if (polls[AT_ERRORS].revents)
        shim->has_errors_ended = !engine_read_errors(&shim->engine);
    if (polls[AT_MONITOR].revents)
        drain_monitor(shim);
    if (polls[AT_LINK].revents & POLLOUT)
        shim->is_link_full = false;
    if (polls[AT_LINK].revents & (POLLIN | POLLHUP | POLLERR))
        read_link(shim);
    for (int i = 0; i < CONNECTIONS_MAX && !shim->core.end; i++)
        if (shim->sockets[i] >= 0 && polls[AT_CONNECTIONS + i].revents)
            serve_connection(shim, i, polls[AT_CONNECTIONS + i].revents);
    if (polls[AT_LISTENER].revents && !shim->core.end)
        take_new(shim);
}

void loop_run(struct shim *shim)
{
    struct core *core = &shim->core;
    struct pollfd polls[AT_CONNECTIONS + CONNECTIONS_MAX];
    while (!core->end) {
        core->now_ms = monotonic_ms();
        uint64_t next_ms = core_tick(core);
        flush(shim);
        if (core->end)
            break;
        arm(shim, polls);
        if (poll(polls, AT_CONNECTIONS + CONNECTIONS_MAX, wait_ms(shim, next_ms)) < 0)
            continue;
        core->now_ms = monotonic_ms();
        serve(shim, polls);
        if (shim->engine.has_ended) {
            loop_drain_link(shim);
            end_by_engine(shim);
        } else if (shim->has_link_ended && shim->give_up_ms <= core->now_ms) {
            core_end(core, END_AGENT_DIED, "the agent's link ended");
        }
    }
}
