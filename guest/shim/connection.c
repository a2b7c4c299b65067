/* Frames from the daemon: one connection's transient streams are renumbered, so
 * that it can neither see nor touch another's. An offence ends the connection. */
#include "core.h"

#include <string.h>

struct connection *core_connect(struct core *core, bool is_first)
{
    for (struct connection *each = core->connections; each < core->connections + CONNECTIONS_MAX;
         each++) {
        if (each->is_open)
            continue;
        memset(each, 0, sizeof *each);
        each->is_open = true;
        each->is_first = is_first;
        return each;
    }
    return NULL;
}

void core_disconnect(struct core *core, struct connection *connection)
{
    for (struct transient *each = core->transients; each < core->transients + WIRE_STREAMS_MAX;
         each++) {
        if (!each->id || each->owner != connection)
            continue;
        if (core->quiet.is_on)
            quiet_adopt(core, each->id);
        else
            core_send_agent(core, WIRE_RESET, each->id, 0, 0);
        each->id = 0;
    }
    freeze_owner_gone(core, connection);
    quiet_owner_gone(core, connection);
    if (core->holder == connection)
        core_end(core, END_KILLED, "nobody claimed it");
    if (core->start.connection == connection)
        core->start.connection = NULL;
    if (connection->is_first && core->join != JOINED)
        core_end(core, END_KILLED, "the control connection ended before the start succeeded");
    queue_free(&connection->in);
    queue_free(&connection->out);
    connection->is_open = false;
}

bool core_may_read(const struct connection *connection)
{
    return !connection->is_broken && !connection->is_stalled &&
           queue_length(&connection->out) < CONNECTION_QUEUE_MAX;
}

void core_sent(struct connection *connection, size_t count)
{
    queue_take(&connection->out, count);
    connection->sent_bytes += count;
}

void connection_frame(struct connection *connection, const struct wire_header *header,
                      const void *payload)
{
    queue_frame(&connection->out, header, payload);
}

void connection_refuse(struct connection *connection, uint32_t stream, const char *error)
{
    struct queue fields = {0};
    field_append(&fields, "error=%s", error);
    struct wire_header header = {
        .kind = WIRE_RESET, .stream = stream, .length = (uint32_t)queue_length(&fields)};
    connection_frame(connection, &header, queue_head(&fields));
    queue_free(&fields);
}

void connection_tell_journal(struct core *core, struct connection *connection)
{
    connection->journal_told = core->host->journal_end();
    struct wire_header header = {.kind = WIRE_DATA, .value = connection->journal_told};
    connection_frame(connection, &header, NULL);
    connection->journal_sent_at = connection->sent_bytes + queue_length(&connection->out);
}

static struct transient *find(struct core *core, const struct connection *connection,
                              uint32_t far_id)
{
    for (struct transient *each = core->transients; each < core->transients + WIRE_STREAMS_MAX;
         each++)
        if (each->id && each->owner == connection && each->far_id == far_id)
            return each;
    return NULL;
}

/* Whether those who speak for strangers would leave nothing for the daemon. */
static bool is_beyond_scope(const struct core *core, const struct connection *connection)
{
    unsigned count = 0;
    for (unsigned i = 0; i < WIRE_STREAMS_MAX; i++)
        count += core->transients[i].id && core->transients[i].owner->is_scoped;
    return connection->is_scoped && count >= WIRE_SCOPED_STREAMS_MAX;
}

static void open_transient(struct core *core, struct connection *connection,
                           struct wire_header *header, const uint8_t *payload)
{
    if (find(core, connection, header->stream)) {
        connection->is_broken = true;
        return;
    }
    if (core->join != JOINED) {
        connection_refuse(connection, header->stream, "the agent has not joined");
        return;
    }
    if (core_open_streams(core) >= WIRE_STREAMS_MAX || is_beyond_scope(core, connection) ||
        core->next_id == UINT32_MAX) {
        connection_refuse(connection, header->stream, "too many streams are open in this VM");
        return;
    }
    struct transient *transient = core->transients;
    while (transient->id)
        transient++;
    memset(transient, 0, sizeof *transient);
    transient->id = core->next_id++;
    transient->far_id = header->stream;
    transient->owner = connection;
    for (int i = 0; i < 3; i++)
        transient->channels[i].credit = WIRE_WINDOW_BYTES;
    header->stream = transient->id;
    header->value = 0;
    queue_frame(&core->to_agent, header, payload);
}

/* What a kind does to its channel. 1: goes on; 0: nothing to say; -1: offence. */
static int judge(struct transient *transient, const struct wire_header *header)
{
    struct channel *channel = &transient->channels[header->channel];
    switch (header->kind) {
    case WIRE_DATA:
        if (header->channel != WIRE_IN || channel->has_ended || header->value != channel->offset ||
            header->length > channel->credit - channel->offset)
            return -1;
        channel->offset += header->length;
        return header->length > 0;
    case WIRE_EOF:
        if (header->channel != WIRE_IN || channel->has_ended || header->value != channel->offset)
            return -1;
        channel->has_ended = true;
        return 1;
    case WIRE_CREDIT:
        if (header->channel == WIRE_IN)
            return -1;
        if (header->value <= channel->credit)
            return 0;
        channel->credit = header->value;
        return 1;
    case WIRE_SIGNAL:
    case WIRE_RESET:
        return 1;
    default:
        return -1;
    }
}

static void take_transient(struct core *core, struct connection *connection,
                           struct wire_header *header, const uint8_t *payload)
{
    if (header->kind == WIRE_OPEN) {
        open_transient(core, connection, header, payload);
        return;
    }
    struct transient *transient = find(core, connection, header->stream);
    if (!transient) { /* it may have crossed the stream's end; a wrong kind has no excuse */
        struct transient none = {0};
        none.channels[header->channel].credit = NEVER;
        none.channels[header->channel].offset = header->value;
        connection->is_broken = judge(&none, header) < 0;
        return;
    }
    int verdict = judge(transient, header);
    connection->is_broken = verdict < 0;
    if (verdict <= 0)
        return;
    header->stream = transient->id;
    if (header->kind != WIRE_DATA)
        header->length = 0;
    if (header->kind == WIRE_SIGNAL || header->kind == WIRE_RESET)
        header->channel = 0; /* it means nothing there */
    queue_frame(&core->to_agent, header, payload);
    if (header->kind == WIRE_RESET)
        transient->id = 0;
}

static void take_frame(struct core *core, struct connection *connection,
                       struct wire_header *header, const uint8_t *payload)
{
    uint32_t stream = header->stream;
    bool is_durable = stream && stream <= WIRE_DURABLE_ID_MAX && !connection->is_scoped;
    if (header->kind == WIRE_REQUEST && stream == 0)
        verb_request(core, connection, header->value, payload, header->length);
    else if (header->kind == WIRE_OPEN && header->channel == WIRE_OUT && is_durable)
        durable_open(core, connection, header, payload);
    else if (header->kind == WIRE_SIGNAL && is_durable)
        durable_signal(core, header);
    else if (stream >= WIRE_TRANSIENT_ID_MIN &&
             (header->kind != WIRE_OPEN || header->channel == WIRE_IN))
        take_transient(core, connection, header, payload);
    else
        connection->is_broken = true;
}

void core_take_connection(struct core *core, struct connection *connection)
{
    struct wire_header header;
    const uint8_t *payload;
    connection->is_stalled = false;
    while (!core->end && !connection->is_broken) {
        int found = queue_peek(&connection->in, &header, &payload);
        connection->is_broken = found < 0;
        if (found <= 0)
            return;
        /* Requests are answered by the shim: a deaf agent must not be in their way. */
        bool is_deaf = core->quiet.is_on || queue_length(&core->to_agent) >= AGENT_QUEUE_MAX;
        if (header.kind != WIRE_REQUEST && is_deaf) {
            connection->is_stalled = true;
            return;
        }
        size_t size = WIRE_HEADER_BYTES + header.length;
        take_frame(core, connection, &header, payload);
        queue_take(&connection->in, size);
    }
}

void core_feed_connection(struct core *core, struct connection *connection, const void *bytes,
                          size_t count)
{
    queue_append(&connection->in, bytes, count);
    core_take_connection(core, connection);
}
