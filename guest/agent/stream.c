/* Streams as their services use them: sending, credit, ends, and waiting. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "session.h"

size_t stream_room(const struct stream *stream, enum wire_channel channel)
{
    if (queue_length(&stream->session->to_send) >= OUTPUT_BACKLOG_BYTES)
        return 0;
    uint64_t credit = stream->out[channel - WIRE_OUT].limit - stream->out[channel - WIRE_OUT].sent;
    return credit < WIRE_PAYLOAD_MAX ? (size_t)credit : WIRE_PAYLOAD_MAX;
}

ssize_t stream_send_from(struct stream *stream, enum wire_channel channel, int fd, size_t limit)
{
    struct queue *to_send = &stream->session->to_send;
    size_t room = stream_room(stream, channel);
    if (limit > room)
        limit = room;
    uint8_t *out = queue_reserve(to_send, WIRE_HEADER_BYTES + limit);
    ssize_t got = read(fd, out + WIRE_HEADER_BYTES, limit);
    if (got <= 0)
        return got;
    uint64_t *sent = &stream->out[channel - WIRE_OUT].sent;
    struct wire_header header = {.length = (uint32_t)got,
                                 .stream = stream->id,
                                 .kind = WIRE_DATA,
                                 .channel = (uint8_t)channel,
                                 .value = *sent};
    wire_encode(&header, out);
    queue_commit(to_send, WIRE_HEADER_BYTES + (size_t)got);
    *sent += (uint64_t)got;
    return got;
}

void stream_send(struct stream *stream, enum wire_channel channel, const void *bytes, size_t count)
{
    uint64_t *sent = &stream->out[channel - WIRE_OUT].sent;
    struct wire_header header = {.length = (uint32_t)count,
                                 .stream = stream->id,
                                 .kind = WIRE_DATA,
                                 .channel = (uint8_t)channel,
                                 .value = *sent};
    queue_frame(&stream->session->to_send, &header, bytes);
    *sent += count;
}

void stream_send_eof(struct stream *stream, enum wire_channel channel)
{
    if (stream->out[channel - WIRE_OUT].has_ended)
        return;
    stream->out[channel - WIRE_OUT].has_ended = true;
    struct wire_header header = {.stream = stream->id,
                                 .kind = WIRE_EOF,
                                 .channel = (uint8_t)channel,
                                 .value = stream->out[channel - WIRE_OUT].sent};
    queue_frame(&stream->session->to_send, &header, NULL);
}

void stream_consumed(struct stream *stream, size_t count)
{
    stream->in.consumed += count;
    uint64_t limit = stream->in.consumed + WIRE_WINDOW_BYTES;
    /* A sender that is out of credit has at least half a window to come. */
    if (stream->in.has_ended || limit - stream->in.granted < WIRE_WINDOW_BYTES / 2)
        return;
    stream->in.granted = limit;
    struct wire_header header = {
        .stream = stream->id, .kind = WIRE_CREDIT, .channel = WIRE_IN, .value = limit};
    queue_frame(&stream->session->to_send, &header, NULL);
}

void stream_exit(struct stream *stream, uint64_t value, const struct queue *fields)
{
    struct wire_header header = {.length = fields ? (uint32_t)queue_length(fields) : 0,
                                 .stream = stream->id,
                                 .kind = WIRE_EXIT,
                                 .value = value};
    queue_frame(&stream->session->to_send, &header, fields ? queue_head(fields) : NULL);
    stream->id = 0;
}

void stream_fail(struct stream *stream, int error)
{
    struct queue fields = {0};
    queue_field(&fields, "error=%s", strerror(error));
    stream_exit(stream, (uint64_t)error, &fields);
    queue_free(&fields);
}

void stream_reset(struct stream *stream, const char *why)
{
    struct queue fields = {0};
    queue_field(&fields, "error=%s", why);
    struct wire_header header = {
        .length = (uint32_t)queue_length(&fields), .stream = stream->id, .kind = WIRE_RESET};
    queue_frame(&stream->session->to_send, &header, queue_head(&fields));
    queue_free(&fields);
    stream->id = 0;
}

int poll_add(struct poll_set *set, int fd, short events)
{
    set->entries[set->count] = (struct pollfd){.fd = fd, .events = events};
    return (int)set->count++;
}

void poll_by(struct poll_set *set, int64_t wake_ns)
{
    if (set->wake_ns < 0 || wake_ns < set->wake_ns)
        set->wake_ns = wake_ns;
}

bool poll_is_ready(const struct poll_set *set, int index)
{
    return index >= 0 && (size_t)index < set->count && set->entries[index].revents != 0;
}

void session_watch(struct session *session, struct poll_set *set)
{
    set->count = 0;
    set->wake_ns = -1;
    size_t backlog = queue_length(&session->to_send);
    short in = backlog < ANSWER_BACKLOG_BYTES ? POLLIN : 0, out = backlog ? POLLOUT : 0;
    /* A virtio port once only: asking it takes what has come, so what an entry that does not
     * wait for it finds behind the one that does would wake nobody. */
    bool is_one = session->in == session->out;
    poll_add(set, session->in, is_one ? in | out : in);
    if (!is_one)
        poll_add(set, session->out, out);
    if (session->is_quiet || session->is_ending)
        return;
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        struct stream *stream = &session->streams[i];
        if (stream->id && stream->service->watch)
            stream->service->watch(stream, set);
    }
}

void session_pump(struct session *session, const struct poll_set *set)
{
    if (session->is_quiet || session->is_ending)
        return;
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        struct stream *stream = &session->streams[(session->first + i) % WIRE_STREAMS_MAX];
        if (stream->id && stream->service->pump)
            stream->service->pump(stream, set);
    }
    session->first = (session->first + 1) % WIRE_STREAMS_MAX;
}
