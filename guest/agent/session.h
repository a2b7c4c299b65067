/* The agent's end of the conversation with its shim: the link's bytes, the
 * table of open streams and the credit of their channels, both ways. What a
 * stream does is a `struct service`; the session knows none by name, asks
 * service_find for them and so touches nothing outside but the link.
 */
#ifndef MAGS_SESSION_H
#define MAGS_SESSION_H

#include <poll.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire.h"

/* Output waits in its pipes and files while so much of it waits for the link. */
#define OUTPUT_BACKLOG_BYTES (256u * 1024u)
/* Requests wait in the link while so many answers wait for it. */
#define ANSWER_BACKLOG_BYTES (1024u * 1024u)
#define STREAM_FDS_MAX 3
/* Pipes that outlive their streams. */
#define LEFTOVERS_MAX 64

struct fields {
    const uint8_t *bytes;
    size_t length;
};

struct session;

struct stream {
    uint32_t id; /* 0: the slot is free */
    struct session *session;
    const struct service *service;
    void *state; /* the service's */
    struct {
        uint64_t received, consumed, granted;
        bool has_ended;
    } in;
    struct {
        uint64_t sent, limit;
        bool has_ended;
    } out[2]; /* by channel - WIRE_OUT */
};

/* Descriptors to wait for, filled by `watch`, looked up by `pump`. */
struct poll_set {
    struct pollfd entries[2 + STREAM_FDS_MAX * WIRE_STREAMS_MAX + LEFTOVERS_MAX];
    size_t count;
    int64_t wake_ns; /* monotonic time by which to pump again; -1: none */
};

/* A kind of stream. Whatever a member does, it does not block on another
 * process. A member that is NULL means that there is nothing to do. */
struct service {
    const char *word;
    /* Begin. NULL, or why not (the far end gets RESET). May end the stream. */
    const char *(*open)(struct stream *stream, struct fields fields);
    /* Bytes came in; to be acknowledged by stream_consumed, now or later. */
    void (*data)(struct stream *stream, const uint8_t *bytes, size_t count);
    void (*eof)(struct stream *stream);
    void (*signal)(struct stream *stream, int number);
    void (*resize)(struct stream *stream, uint16_t columns, uint16_t rows);
    /* Let go of everything: the far end has reset the stream. */
    void (*abandon)(struct stream *stream);
    void (*watch)(struct stream *stream, struct poll_set *set);
    /* Move what can be moved. May end the stream. */
    void (*pump)(struct stream *stream, const struct poll_set *set);
};

/* The service that the first word of an OPEN asks for, or NULL. */
const struct service *service_find(const char *word);

enum session_state { AWAITING_MAGIC, AWAITING_JOIN, JOINED };

struct session {
    int in, out; /* the link */
    enum session_state state;
    bool is_quiet;  /* nothing is pumped until the next JOIN */
    bool is_ending; /* leave once everything is sent */
    size_t first;   /* the stream that is pumped first; each in turn */
    struct queue received, to_send;
    struct stream streams[WIRE_STREAMS_MAX];
};

/* Begin on a link that does not block. */
void session_start(struct session *session, int in, int out);

/* Read once from the link. False when it has ended. */
bool session_read(struct session *session);

/* Send what the link takes. False when it has ended. */
bool session_flush(struct session *session);

/* Handle every whole frame received. NULL, or the offence that was committed. */
const char *session_handle(struct session *session);

/* Enter what to wait for: the link first, then the streams. */
void session_watch(struct session *session, struct poll_set *set);

/* Let each stream move what it can. */
void session_pump(struct session *session, const struct poll_set *set);

/* Add a descriptor; returns where it is. */
int poll_add(struct poll_set *set, int fd, short events);
/* Wake by then. */
void poll_by(struct poll_set *set, int64_t wake_ns);
/* Whether anything happened to the descriptor that is at `index`, -1 being nowhere. */
bool poll_is_ready(const struct poll_set *set, int index);

/* How many bytes the channel may carry now. */
size_t stream_room(const struct stream *stream, enum wire_channel channel);

/* Send at most `limit` bytes that are read from `fd`, at most the room there
 * is, at most one frame. Returns what read(2) does. */
ssize_t stream_send_from(struct stream *stream, enum wire_channel channel, int fd, size_t limit);

/* Send bytes that are known to be within the credit. */
void stream_send(struct stream *stream, enum wire_channel channel, const void *bytes, size_t count);

/* End a channel; nothing when it has ended. */
void stream_send_eof(struct stream *stream, enum wire_channel channel);

/* `count` bytes of what came in are done with. */
void stream_consumed(struct stream *stream, size_t count);

/* End the stream; `fields` may be NULL. Its state must be free already. */
void stream_exit(struct stream *stream, uint64_t value, const struct queue *fields);

/* End the stream with an errno and its text. */
void stream_fail(struct stream *stream, int error);

/* Break the stream off: the far end must not take what it has for all there is. */
void stream_reset(struct stream *stream, const char *why);

#endif
