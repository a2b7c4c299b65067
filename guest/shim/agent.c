/* Frames from the agent. Every byte of them is hostile: what the wire does not
 * allow ends the VM. */
#include "core.h"

#include <stdio.h>
#include <string.h>

static void offence(struct core *core, const struct wire_header *header, const char *what)
{
    core_end(core, END_AGENT_DIED, "the agent broke the protocol: %s (kind %u, stream %u)", what,
             header->kind, header->stream);
}

void core_send_join(struct core *core)
{
    struct queue fields = {0};
    field_append(&fields, "version=%d", WIRE_VERSION);
    field_append(&fields, "nonce=%s", core->nonce);
    struct wire_header header = {.kind = WIRE_JOIN, .length = (uint32_t)queue_length(&fields)};
    queue_append(&core->to_agent, WIRE_MAGIC, WIRE_MAGIC_BYTES);
    queue_frame(&core->to_agent, &header, queue_head(&fields));
    queue_free(&fields);
}

void core_ask_join(struct core *core)
{
    core_send_join(core);
    core->join = JOIN_ASKED;
}

static void take_join(struct core *core, const struct wire_header *header, const uint8_t *payload)
{
    const char *nonce = fields_get(payload, header->length, "nonce");
    const char *version = fields_get(payload, header->length, "version");
    const char *error;
    if ((core->join != JOIN_ASKED && !core->quiet.joins) || header->stream != 0)
        offence(core, header, "it joined unasked");
    else if (!nonce || strcmp(nonce, core->nonce) != 0)
        offence(core, header, "it joined with a wrong nonce");
    else if (!version || strcmp(version, "1") != 0)
        offence(core, header, "it speaks another version");
    else if ((error = quiet_joined(core, payload, header->length)))
        offence(core, header, error);
    if (core->end)
        return;
    snprintf(core->agent_version, sizeof core->agent_version, "%s", version);
    core->join = JOINED;
    if (core->start.connection)
        reply_ok(core->start.connection, core->start.id);
    core->start.connection = NULL;
}

/* True when the frame goes on, with its payload cut where the kind has none. */
static bool accept(struct core *core, struct transient *transient, struct wire_header *header)
{
    struct channel *channel = &transient->channels[header->channel];
    switch (header->kind) {
    case WIRE_DATA:
        if (channel->has_ended || header->value != channel->offset ||
            header->length > channel->credit - channel->offset) {
            offence(core, header, "data out of order or beyond its credit");
            return false;
        }
        channel->offset += header->length;
        return header->length > 0;
    case WIRE_EOF:
        if (channel->has_ended || header->value != channel->offset) {
            offence(core, header, "a wrong end of a channel");
            return false;
        }
        channel->has_ended = true;
        header->length = 0;
        return true;
    case WIRE_CREDIT:
        if (header->value <= channel->credit)
            return false;
        channel->credit = header->value;
        header->length = 0;
        return true;
    default: /* EXIT, RESET */
        header->channel = 0;
        return true;
    }
}

static void take_transient(struct core *core, struct wire_header *header, const uint8_t *payload)
{
    if (header->stream >= core->next_id) {
        offence(core, header, "a stream that nobody opened");
        return;
    }
    if (quiet_answered(core, header))
        return;
    for (struct transient *each = core->transients; each < core->transients + WIRE_STREAMS_MAX;
         each++) {
        if (each->id != header->stream)
            continue;
        if (!accept(core, each, header))
            return;
        header->stream = each->far_id;
        connection_frame(each->owner, header, payload);
        if (header->kind == WIRE_EXIT || header->kind == WIRE_RESET)
            each->id = 0;
        return;
    }
}

static bool is_kind_of_agent(const struct wire_header *header)
{
    switch (header->kind) {
    case WIRE_DATA:
    case WIRE_EOF:
        return header->channel != WIRE_IN;
    case WIRE_CREDIT:
        return header->channel == WIRE_IN;
    case WIRE_EXIT:
    case WIRE_RESET:
        return true;
    default:
        return false;
    }
}

static void take_frame(struct core *core, struct wire_header *header, const uint8_t *payload)
{
    if (header->kind == WIRE_JOIN)
        take_join(core, header, payload);
    else if (core->join != JOINED)
        offence(core, header, "it spoke before it joined");
    else if (!is_kind_of_agent(header))
        offence(core, header, "not a kind or channel that an agent sends");
    else if (header->stream >= WIRE_TRANSIENT_ID_MIN)
        take_transient(core, header, payload);
    else if (header->stream && header->stream <= WIRE_DURABLE_ID_MAX &&
             core->durables[header->stream])
        durable_from_agent(core, header, payload);
    else
        offence(core, header, "a stream that nobody opened");
}

void core_take_agent(struct core *core)
{
    struct wire_header header;
    const uint8_t *payload;
    while (!core->end) {
        int found = queue_peek(&core->from_agent, &header, &payload);
        if (found < 0)
            core_end(core, END_AGENT_DIED, "the agent broke the protocol: not a frame");
        if (found <= 0)
            return;
        size_t size = WIRE_HEADER_BYTES + header.length;
        take_frame(core, &header, payload);
        queue_take(&core->from_agent, size);
    }
}

void core_feed_agent(struct core *core, const void *bytes, size_t count)
{
    queue_append(&core->from_agent, bytes, count);
    core_take_agent(core);
}
