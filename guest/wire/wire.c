#include "wire.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Not text, not a valid header: its first word is a length over the limit. */
const uint8_t WIRE_MAGIC[WIRE_MAGIC_BYTES] = {
    0xff, 'M', 'a', 'g', 's', 0xfe, 'j', 'o', 'i', 'n', 0xfd, 0x1a, 0x0a, 0x00, 0xfc, 0x01,
};

static void put32(uint8_t *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get32(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

void wire_encode(const struct wire_header *header, uint8_t out[WIRE_HEADER_BYTES])
{
    memset(out, 0, WIRE_HEADER_BYTES);
    put32(out, header->length);
    put32(out + 4, header->stream);
    out[8] = header->kind;
    out[9] = header->channel;
    put32(out + 16, (uint32_t)header->value);
    put32(out + 20, (uint32_t)(header->value >> 32));
}

bool wire_decode(const uint8_t in[WIRE_HEADER_BYTES], struct wire_header *header)
{
    header->length = get32(in);
    header->stream = get32(in + 4);
    header->kind = in[8];
    header->channel = in[9];
    header->value = get32(in + 16) | (uint64_t)get32(in + 20) << 32;
    if (header->length > WIRE_PAYLOAD_MAX || header->channel > WIRE_ERR)
        return false;
    if (header->kind < WIRE_JOIN || header->kind > WIRE_REPLY)
        return false;
    return !(in[10] | in[11] | in[12] | in[13] | in[14] | in[15]);
}

uint8_t *queue_reserve(struct queue *queue, size_t count)
{
    if (queue->head == queue->tail)
        queue->head = queue->tail = 0;
    if (queue->tail + count > queue->capacity && queue->head) {
        memmove(queue->bytes, queue->bytes + queue->head, queue_length(queue));
        queue->tail -= queue->head;
        queue->head = 0;
    }
    if (queue->tail + count > queue->capacity) {
        size_t capacity = queue->capacity ? queue->capacity : 4096;
        while (queue->tail + count > capacity)
            capacity *= 2;
        uint8_t *bytes = realloc(queue->bytes, capacity);
        if (!bytes)
            abort();
        queue->bytes = bytes;
        queue->capacity = capacity;
    }
    return queue->bytes + queue->tail;
}

void queue_commit(struct queue *queue, size_t count) { queue->tail += count; }

void queue_append(struct queue *queue, const void *bytes, size_t count)
{
    if (!count)
        return;
    memcpy(queue_reserve(queue, count), bytes, count);
    queue_commit(queue, count);
}

void queue_take(struct queue *queue, size_t count)
{
    queue->head += count;
    /* An idle VM must not keep the buffer of its busiest moment. */
    if (queue->head == queue->tail && queue->capacity > 256 * 1024)
        queue_free(queue);
}

void queue_free(struct queue *queue)
{
    free(queue->bytes);
    memset(queue, 0, sizeof *queue);
}

void queue_frame(struct queue *queue, const struct wire_header *header, const void *payload)
{
    uint8_t *out = queue_reserve(queue, WIRE_HEADER_BYTES + header->length);
    wire_encode(header, out);
    if (header->length)
        memcpy(out + WIRE_HEADER_BYTES, payload, header->length);
    queue_commit(queue, WIRE_HEADER_BYTES + header->length);
}

int queue_peek(const struct queue *queue, struct wire_header *header, const uint8_t **payload)
{
    if (queue_length(queue) < WIRE_HEADER_BYTES)
        return 0;
    if (!wire_decode(queue_head(queue), header))
        return -1;
    if (queue_length(queue) < WIRE_HEADER_BYTES + header->length)
        return 0;
    *payload = queue_head(queue) + WIRE_HEADER_BYTES;
    return 1;
}

const char *fields_next(const uint8_t *payload, size_t length, size_t *cursor)
{
    if (*cursor >= length)
        return NULL;
    const uint8_t *end = memchr(payload + *cursor, 0, length - *cursor);
    if (!end)
        return NULL;
    const char *field = (const char *)payload + *cursor;
    *cursor = (size_t)(end - payload) + 1;
    return field;
}

const char *field_value(const char *field, const char *key)
{
    size_t length = strlen(key);
    return strncmp(field, key, length) == 0 && field[length] == '=' ? field + length + 1 : NULL;
}

const char *fields_get(const uint8_t *payload, size_t length, const char *key)
{
    size_t cursor = 0;
    for (const char *field; (field = fields_next(payload, length, &cursor));) {
        const char *value = field_value(field, key);
        if (value)
            return value;
    }
    return NULL;
}

bool fields_are_whole(const uint8_t *payload, size_t length)
{
    return length == 0 || payload[length - 1] == 0;
}

void queue_field(struct queue *queue, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        abort();
    char *out = (char *)queue_reserve(queue, (size_t)length + 1);
    va_start(arguments, format);
    vsnprintf(out, (size_t)length + 1, format, arguments);
    va_end(arguments);
    queue_commit(queue, (size_t)length + 1);
}
