#define _GNU_SOURCE
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NONCE_CHARS 32

void session_start(struct session *session, int in, int out)
{
    memset(session, 0, sizeof *session);
    session->in = in;
    session->out = out;
}

bool session_read(struct session *session)
{
    const size_t count = WIRE_HEADER_BYTES + WIRE_PAYLOAD_MAX;
    ssize_t got = read(session->in, queue_reserve(&session->received, count), count);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    queue_commit(&session->received, (size_t)got);
    return got > 0;
}

bool session_flush(struct session *session)
{
    struct queue *to_send = &session->to_send;
    while (queue_length(to_send)) {
        ssize_t put = write(session->out, queue_head(to_send), queue_length(to_send));
        if (put < 0)
            return errno == EAGAIN || errno == EINTR;
        queue_take(to_send, (size_t)put);
    }
    return true;
}

static struct stream *find(struct session *session, uint32_t id)
{
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
        if (session->streams[i].id == id)
            return &session->streams[i];
    return NULL;
}

static void refuse(struct session *session, uint32_t id, const char *why)
{
    struct queue fields = {0};
    queue_field(&fields, "error=%s", why);
    struct wire_header header = {
        .length = (uint32_t)queue_length(&fields), .stream = id, .kind = WIRE_RESET};
    queue_frame(&session->to_send, &header, queue_head(&fields));
    queue_free(&fields);
}

static bool is_nonce(const char *text)
{
    return text && strlen(text) == NONCE_CHARS && strspn(text, "0123456789abcdef") == NONCE_CHARS;
}

static const char *on_join(struct session *session, struct fields fields)
{
    const char *version = fields_get(fields.bytes, fields.length, "version");
    const char *nonce = fields_get(fields.bytes, fields.length, "nonce");
    if (!version || strcmp(version, "1") != 0)
        return "a JOIN of another version";
    if (!is_nonce(nonce))
        return "a JOIN without a nonce";
    struct queue answer = {0};
    queue_field(&answer, "version=%d", WIRE_VERSION);
    queue_field(&answer, "nonce=%s", nonce);
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        const struct stream *stream = &session->streams[i];
        if (stream->id)
            queue_field(&answer, "stream=%u:%llu:%llu", stream->id,
                        (unsigned long long)stream->out[0].sent,
                        (unsigned long long)stream->out[1].sent);
    }
    struct wire_header header = {.length = (uint32_t)queue_length(&answer), .kind = WIRE_JOIN};
    queue_frame(&session->to_send, &header, queue_head(&answer));
    queue_free(&answer);
    session->state = JOINED;
    session->is_quiet = false;
    return NULL;
}

static const char *on_open(struct session *session, uint32_t id, struct fields fields)
{
    if (id == 0 || (id > WIRE_DURABLE_ID_MAX && id < WIRE_TRANSIENT_ID_MIN))
        return "OPEN of an id that no stream has";
    if (find(session, id))
        return "OPEN of a stream that is open";
    struct stream *stream = find(session, 0);
    size_t cursor = 0;
    const char *word = fields_next(fields.bytes, fields.length, &cursor);
    const struct service *service = word ? service_find(word) : NULL;
    const char *why = NULL;
    if (!stream)
        why = "too many open streams";
    else if (!fields_are_whole(fields.bytes, fields.length))
        why = "the last field has no end";
    else if (!service)
        why = "no such service";
    if (!why) {
        memset(stream, 0, sizeof *stream);
        stream->id = id;
        stream->session = session;
        stream->service = service;
        stream->in.granted = WIRE_WINDOW_BYTES;
        stream->out[0].limit = stream->out[1].limit = WIRE_WINDOW_BYTES;
        why = service->open(stream, fields);
        if (why)
            stream->id = 0;
    }
    if (why)
        refuse(session, id, why);
    return NULL;
}

static const char *on_data(struct stream *stream, const struct wire_header *header,
                           const uint8_t *payload)
{
    if (stream->in.has_ended)
        return "DATA after EOF";
    if (header->value != stream->in.received)
        return "DATA at another offset";
    if (header->length > stream->in.granted - stream->in.received)
        return "DATA beyond the credit";
    stream->in.received += header->length;
    if (!stream->service->data)
        stream_consumed(stream, header->length);
    else if (header->length)
        stream->service->data(stream, payload, header->length);
    return NULL;
}

static const char *on_eof(struct stream *stream, uint64_t length)
{
    if (stream->in.has_ended)
        return "EOF after EOF";
    if (length != stream->in.received)
        return "EOF at another offset";
    stream->in.has_ended = true;
    if (stream->service->eof)
        stream->service->eof(stream);
    return NULL;
}

static void on_signal(struct stream *stream, uint64_t value)
{
    if (value >> 32 == WIRE_RESIZE && stream->service->resize)
        stream->service->resize(stream, (uint16_t)(value >> 16), (uint16_t)value);
    else if (stream->service->signal && value > 0 && value <= 64)
        stream->service->signal(stream, (int)value);
}

static const char *on_stream_frame(struct session *session, const struct wire_header *header,
                                   const uint8_t *payload)
{
    bool is_inward = header->kind == WIRE_DATA || header->kind == WIRE_EOF;
    if (is_inward && header->channel != WIRE_IN)
        return "DATA or EOF on a channel that leads out";
    if (header->kind == WIRE_CREDIT && header->channel == WIRE_IN)
        return "CREDIT on the channel that leads in";
    struct stream *stream = header->stream ? find(session, header->stream) : NULL;
    if (!stream) /* it crossed the stream's end */
        return NULL;
    switch (header->kind) {
    case WIRE_DATA:
        return on_data(stream, header, payload);
    case WIRE_EOF:
        return on_eof(stream, header->value);
    case WIRE_CREDIT: {
        uint64_t *limit = &stream->out[header->channel - WIRE_OUT].limit;
        if (header->value > *limit)
            *limit = header->value;
        return NULL;
    }
    case WIRE_SIGNAL:
        on_signal(stream, header->value);
        return NULL;
    default: /* WIRE_RESET */
        if (stream->service->abandon)
            stream->service->abandon(stream);
        stream->id = 0;
        return NULL;
    }
}

static const char *on_frame(struct session *session, const struct wire_header *header,
                            const uint8_t *payload)
{
    struct fields fields = {payload, header->length};
    if (session->state == AWAITING_JOIN)
        return header->kind == WIRE_JOIN ? on_join(session, fields) : "no JOIN behind the magic";
    switch (header->kind) {
    case WIRE_OPEN:
        return on_open(session, header->stream, fields);
    case WIRE_DATA:
    case WIRE_EOF:
    case WIRE_CREDIT:
    case WIRE_SIGNAL:
    case WIRE_RESET:
        return on_stream_frame(session, header, payload);
    default:
        return "a kind of frame that is not for an agent";
    }
}

/* Drop everything up to the magic, and the magic. False while it has not come. */
static bool skip_to_magic(struct session *session)
{
    struct queue *received = &session->received;
    size_t length = queue_length(received);
    if (length < WIRE_MAGIC_BYTES)
        return false;
    const uint8_t *magic = memmem(queue_head(received), length, WIRE_MAGIC, WIRE_MAGIC_BYTES);
    if (!magic) {
        queue_take(received, length - (WIRE_MAGIC_BYTES - 1));
        return false;
    }
    queue_take(received, (size_t)(magic - queue_head(received)) + WIRE_MAGIC_BYTES);
    session->state = AWAITING_JOIN;
    return true;
}

const char *session_handle(struct session *session)
{
    struct queue *received = &session->received;
    for (;;) {
        bool is_rejoin = session->state == JOINED && queue_length(received) >= WIRE_MAGIC_BYTES &&
                         memcmp(queue_head(received), WIRE_MAGIC, WIRE_MAGIC_BYTES) == 0;
        if ((is_rejoin || session->state == AWAITING_MAGIC) && !skip_to_magic(session))
            return NULL;
        struct wire_header header;
        const uint8_t *payload;
        int found = queue_peek(received, &header, &payload);
        if (found <= 0)
            return found ? "not a frame" : NULL;
        const char *offence = on_frame(session, &header, payload);
        if (offence)
            return offence;
        queue_take(received, WIRE_HEADER_BYTES + header.length);
    }
}
