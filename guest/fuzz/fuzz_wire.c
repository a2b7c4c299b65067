/* Headers, fields and the queue: bytes of any kind, against a plain model. */
#include "script.h"
#include "wire.h"

#define MODEL_BYTES (1u << 20)

static void try_header(const uint8_t bytes[WIRE_HEADER_BYTES])
{
    struct wire_header header;
    uint8_t again[WIRE_HEADER_BYTES];
    if (!wire_decode(bytes, &header))
        return;
    REQUIRE(header.length <= WIRE_PAYLOAD_MAX);
    wire_encode(&header, again);
    REQUIRE(memcmp(bytes, again, sizeof again) == 0);
}

static void try_fields(const uint8_t *bytes, size_t count)
{
    size_t cursor = 0, length = 0;
    for (const char *field; (field = fields_next(bytes, count, &cursor));) {
        REQUIRE((const uint8_t *)field == bytes + length);
        length += strlen(field) + 1;
        REQUIRE(length == cursor && length <= count);
        const char *value = field_value(field, "key");
        REQUIRE(!value || value == field + 4);
    }
    REQUIRE(fields_are_whole(bytes, count) == (length == count));
    const char *value = fields_get(bytes, count, "key");
    REQUIRE(!value || memcmp(value - 4, "key=", 4) == 0);
}

/* Frames cut anywhere come out as they went in. */
static void try_queue(struct script *script)
{
    static uint8_t model[MODEL_BYTES];
    struct queue queue = {0};
    size_t head = 0, tail = 0;
    while (!script_is_over(script)) {
        const uint8_t *bytes;
        size_t count = script_bytes(script, script_byte(script), &bytes);
        if (tail + count > MODEL_BYTES)
            break;
        queue_append(&queue, bytes, count);
        if (count)
            memcpy(model + tail, bytes, count);
        tail += count;
        struct wire_header header;
        const uint8_t *payload;
        int found = queue_peek(&queue, &header, &payload);
        if (found == 1)
            REQUIRE(payload + header.length <= queue_head(&queue) + queue_length(&queue));
        size_t taken = found == 1 ? WIRE_HEADER_BYTES + header.length : script_byte(script);
        taken = taken < queue_length(&queue) ? taken : queue_length(&queue);
        queue_take(&queue, taken);
        head += taken;
        REQUIRE(queue_length(&queue) == tail - head);
        REQUIRE(head == tail || memcmp(queue_head(&queue), model + head, tail - head) == 0);
    }
    queue_free(&queue);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct script script = {bytes, bytes + count};
    if (count >= WIRE_HEADER_BYTES)
        try_header(bytes);
    try_fields(bytes, count);
    try_queue(&script);
    return 0;
}
