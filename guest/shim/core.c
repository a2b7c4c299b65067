#include "core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void core_init(struct core *core, const struct host *host, const char *vm, const char *epoch,
               const char *nonce)
{
    memset(core, 0, sizeof *core);
    core->host = host;
    core->vm = vm;
    core->epoch = epoch;
    core->nonce = nonce;
    core->next_id = WIRE_TRANSIENT_ID_MIN;
}

void core_resume(struct core *core, uint32_t next_id, uint64_t system_offset)
{
    core->next_id = next_id;
    core->system_offset = system_offset;
    core->quiet.is_waiting = true;
}

void core_free(struct core *core)
{
    queue_free(&core->from_agent);
    queue_free(&core->to_agent);
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        queue_free(&core->connections[i].in);
        queue_free(&core->connections[i].out);
    }
    for (uint32_t id = 1; id <= WIRE_DURABLE_ID_MAX; id++)
        free(core->durables[id]);
}

uint64_t core_tick(struct core *core)
{
    uint64_t durable = durable_tick(core);
    uint64_t freeze = freeze_tick(core);
    return durable < freeze ? durable : freeze;
}

void core_publish(struct core *core)
{
    uint64_t end = core->host->journal_end();
    size_t total = 0;
    struct connection *longest = NULL;
    for (struct connection *each = core->connections; each < core->connections + CONNECTIONS_MAX;
         each++) {
        if (!each->is_open || each->is_broken)
            continue;
        /* At most one unsent notice is queued, so that who does not read costs nothing. */
        if (each->has_hello && each->journal_told != end &&
            each->sent_bytes >= each->journal_sent_at)
            connection_tell_journal(core, each);
        if (each->is_stalled)
            core_take_connection(core, each);
        total += queue_length(&each->out);
        if (!longest || queue_length(&each->out) > queue_length(&longest->out))
            longest = each;
    }
    if (total > CONNECTIONS_QUEUE_MAX)
        longest->is_broken = true;
}

void core_end(struct core *core, enum end_reason reason, const char *format, ...)
{
    if (core->end)
        return;
    core->end = reason;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(core->end_detail, sizeof core->end_detail, format, arguments);
    va_end(arguments);
}

void core_end_disk(struct core *core, const char *what)
{
    core_end(core, END_HOST_DISK_FULL, "%s could not be written: %s", what, strerror(errno));
}

void field_append(struct queue *fields, const char *format, ...)
{
    char field[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(field, sizeof field, format, arguments);
    va_end(arguments);
    queue_append(fields, field, strlen(field) + 1);
}

unsigned core_open_streams(const struct core *core)
{
    unsigned count = core->running_count;
    for (unsigned i = 0; i < WIRE_STREAMS_MAX; i++)
        count += core->transients[i].id != 0;
    return count;
}

void core_send_agent(struct core *core, uint8_t kind, uint32_t stream, uint8_t channel,
                     uint64_t value)
{
    struct wire_header header = {
        .kind = kind, .stream = stream, .channel = channel, .value = value};
    queue_frame(&core->to_agent, &header, NULL);
}
