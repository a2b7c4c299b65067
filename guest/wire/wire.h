/* The frame that agent, shim and daemon exchange, and the two buffers all of
 * them need. Owns the header's layout and its validity; what a kind means for
 * a stream is the business of agent and shim. The Python twin is
 * magsd/guest/wire.py. docs/reference/wire.md says it in words.
 */
#ifndef MAGS_WIRE_H
#define MAGS_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION 1
#define WIRE_HEADER_BYTES 24u
#define WIRE_PAYLOAD_MAX (64u * 1024u)
#define WIRE_WINDOW_BYTES (256u * 1024u)           /* initial credit of every channel */
#define WIRE_DURABLE_WINDOW_BYTES (1024u * 1024u)  /* granted by the shim after journaling */
#define WIRE_STREAMS_MAX 256u                      /* open at once in one VM */
#define WIRE_SCOPED_STREAMS_MAX 192u               /* of these, on connections in a scope */
#ifndef WIRE_DURABLE_ID_MAX /* a fuzzer has fewer, to be faster */
#define WIRE_DURABLE_ID_MAX 0x7fffu                /* durable stream ids: 1..0x7fff */
#endif
#define WIRE_TRANSIENT_ID_MIN 0x10000u             /* ids the shim gives to all others */
#define WIRE_MAGIC_BYTES 16u

/* Sent by the shim before every JOIN; the agent skips everything up to it. */
extern const uint8_t WIRE_MAGIC[WIRE_MAGIC_BYTES];

enum wire_kind {
    WIRE_JOIN = 1,     /* both ways: (re)join; payload fields */
    WIRE_OPEN = 2,     /* to the agent: payload fields; channel 1 = durable; value = deadline ms */
    WIRE_DATA = 3,     /* value = byte offset in its channel */
    WIRE_EOF = 4,      /* no more DATA on this channel; value = total bytes */
    WIRE_CREDIT = 5,   /* value = absolute limit granted on this channel */
    WIRE_EXIT = 6,     /* agent -> far end: the stream is over; value = wait status */
    WIRE_SIGNAL = 7,   /* far end -> agent; value = signal number, or a terminal's size */
    WIRE_RESET = 8,    /* either way: the stream is over, nothing more will come */
    WIRE_REQUEST = 9,  /* daemon -> shim, stream 0; value = request id; payload fields */
    WIRE_REPLY = 10,   /* shim -> daemon, stream 0; value = request id; payload fields */
};

/* The upper half of a SIGNAL's value that is a size: columns and rows are the lower. */
#define WIRE_RESIZE 1u

enum wire_channel { WIRE_IN = 0, WIRE_OUT = 1, WIRE_ERR = 2 };

struct wire_header {
    uint32_t length; /* payload bytes */
    uint32_t stream;
    uint8_t kind;
    uint8_t channel;
    uint64_t value;
};

/* Write `header` to 24 bytes at `out`. */
void wire_encode(const struct wire_header *header, uint8_t out[WIRE_HEADER_BYTES]);

/* Read 24 bytes. False when they are no header: unknown kind or channel, a
 * payload over the limit, or a reserved byte that is not zero. */
bool wire_decode(const uint8_t in[WIRE_HEADER_BYTES], struct wire_header *header);

/* A growable byte queue: bytes are appended at the tail and taken at the head. */
struct queue {
    uint8_t *bytes;
    size_t head, tail, capacity;
};

static inline size_t queue_length(const struct queue *queue) { return queue->tail - queue->head; }
static inline const uint8_t *queue_head(const struct queue *queue)
{
    return queue->bytes + queue->head;
}

/* Make room for `count` bytes and return where they go; then queue_commit. */
uint8_t *queue_reserve(struct queue *queue, size_t count);
void queue_commit(struct queue *queue, size_t count);
void queue_append(struct queue *queue, const void *bytes, size_t count);
void queue_take(struct queue *queue, size_t count);
void queue_free(struct queue *queue);

/* Append one whole frame. `payload` may be NULL when header->length is 0. */
void queue_frame(struct queue *queue, const struct wire_header *header, const void *payload);

/* Look at the frame at the head. 1: whole frame, *payload points into the
 * queue; 0: more bytes are needed; -1: not a frame. The caller takes
 * WIRE_HEADER_BYTES + header->length when it is done with it. */
int queue_peek(const struct queue *queue, struct wire_header *header, const uint8_t **payload);

/* Fields: the payload of JOIN, OPEN, REQUEST and REPLY is a run of strings,
 * each ended by NUL, each `key=value` or a bare word. Returns the next one
 * and advances *cursor, or NULL at the end or when the last NUL is missing. */
const char *fields_next(const uint8_t *payload, size_t length, size_t *cursor);

/* The value when `field` begins with `key=`, else NULL. */
const char *field_value(const char *field, const char *key);

/* The value of the first field `key=`, or NULL. */
const char *fields_get(const uint8_t *payload, size_t length, const char *key);

/* Whether a payload is fields and nothing else: empty, or ended by NUL. */
bool fields_are_whole(const uint8_t *payload, size_t length);

/* Append one formatted field with its NUL. */
__attribute__((format(printf, 2, 3)))
void queue_field(struct queue *queue, const char *format, ...);

#endif
