/* Quiet before a VM is saved, and going on after it: nothing is under way between shim
 * and agent, and nothing is sent, until whoever asked for it, or its end, undoes that.
 * A frame of which half were saved would be the end of the VM that goes on from there. */
#include "core.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUIESCE "control\0quiesce" /* with its own NUL */

void quiet_ask(struct core *core, struct connection *connection, uint64_t id)
{
    struct quiet *quiet = &core->quiet;
    const char *error = NULL;
    if (core->join != JOINED)
        error = "the agent has not joined";
    else if (quiet->is_on)
        error = "the VM is being saved by another request";
    else if (quiet->is_waiting)
        error = "the VM was not told to go on";
    else if (core_open_streams(core) >= WIRE_STREAMS_MAX || core->next_id == UINT32_MAX)
        error = "too many streams are open in this VM";
    if (error) {
        reply_error(connection, id, "%s", error);
        return;
    }
    quiet->is_on = true;
    quiet->owner = connection;
    quiet->asked = (struct pending){connection, id};
    quiet->stream = core->next_id++;
    struct wire_header header = {
        .kind = WIRE_OPEN, .stream = quiet->stream, .length = sizeof QUIESCE};
    queue_frame(&core->to_agent, &header, QUIESCE);
}

/* Write down all that another shim must know to go on. */
static bool save(struct core *core)
{
    for (unsigned i = 0; i < core->running_count; i++) {
        struct durable *durable = core->running[i];
        uint64_t next_ms = durable->next_ms;
        durable->left_ms = next_ms == NEVER          ? NEVER
                           : next_ms > core->now_ms ? next_ms - core->now_ms
                                                    : 0;
        if (!core->host->save_durable(durable))
            return false;
    }
    return core->host->save_numbers(core->next_id, core->system_offset);
}

bool quiet_answered(struct core *core, const struct wire_header *header)
{
    struct quiet *quiet = &core->quiet;
    if (!quiet->is_on || header->stream != quiet->stream)
        return false;
    struct pending asked = quiet->asked;
    quiet->asked.connection = NULL;
    if (!asked.connection)
        return true;
    if (header->kind != WIRE_EXIT || header->value) {
        reply_error(asked.connection, asked.id, "the agent cannot be quiet");
        quiet_undo(core);
    } else if (!save(core)) {
        core_end_disk(core, "the state file");
    } else {
        reply_ok(asked.connection, asked.id);
    }
    return true;
}

static void drop_orphans(struct core *core)
{
    struct quiet *quiet = &core->quiet;
    while (quiet->orphan_count)
        core_send_agent(core, WIRE_RESET, quiet->orphans[--quiet->orphan_count], 0, 0);
}

void quiet_adopt(struct core *core, uint32_t stream)
{
    struct quiet *quiet = &core->quiet;
    if (quiet->orphan_count < WIRE_STREAMS_MAX)
        quiet->orphans[quiet->orphan_count++] = stream;
}

void quiet_undo(struct core *core)
{
    struct quiet *quiet = &core->quiet;
    if (quiet->asked.connection)
        reply_error(quiet->asked.connection, quiet->asked.id, "the VM went on meanwhile");
    quiet->asked.connection = NULL;
    quiet->owner = NULL;
    quiet->is_on = false;
    core->host->run_engine();
    core_send_join(core);
    quiet->joins++;
    drop_orphans(core);
    durable_grant_held(core);
}

void quiet_owner_gone(struct core *core, const struct connection *connection)
{
    if (!core->quiet.is_on || core->quiet.owner != connection)
        return;
    core->quiet.asked.connection = NULL;
    quiet_undo(core);
}

const char *quiet_proceed(struct core *core, const struct connection *connection)
{
    struct quiet *quiet = &core->quiet;
    if (quiet->is_on && quiet->owner == connection) {
        quiet_undo(core);
        return NULL;
    }
    if (!quiet->is_waiting)
        return "there is nothing to go on from";
    if (core->join != JOINED)
        return "the agent has not joined";
    quiet->is_waiting = false;
    drop_orphans(core);
    return NULL;
}

/* `<id>:<out offset>:<err offset>` */
static bool parse_stream(const char *text, uint64_t numbers[3])
{
    for (int i = 0; i < 3; i++) {
        char *end;
        if (*text < '0' || *text > '9')
            return false;
        numbers[i] = strtoull(text, &end, 10);
        if (*end != (i < 2 ? ':' : 0))
            return false;
        text = end + 1;
    }
    return true;
}

static bool is_known_transient(const struct core *core, uint64_t id)
{
    for (unsigned i = 0; i < WIRE_STREAMS_MAX; i++)
        if (core->transients[i].id == id)
            return true;
    return false;
}

/* What the agent says is open must be what we know; a transient stream of which we do
 * not know was of a shim before us, and has nobody any more. */
static const char *take_stream(struct core *core, const char *text)
{
    uint64_t numbers[3];
    if (!parse_stream(text, numbers))
        return "it joined with a stream that is none";
    uint64_t id = numbers[0];
    if (id >= WIRE_TRANSIENT_ID_MIN && id < core->next_id) {
        if (!is_known_transient(core, id))
            quiet_adopt(core, (uint32_t)id);
        return NULL;
    }
    const struct durable *durable = id <= WIRE_DURABLE_ID_MAX ? core->durables[id] : NULL;
    if (!durable || durable->state != DURABLE_RUNNING)
        return "it joined with a stream that nobody opened";
    if (durable->channels[WIRE_OUT].offset != numbers[1] ||
        durable->channels[WIRE_ERR].offset != numbers[2])
        return "it joined with a stream at another offset";
    return NULL;
}

const char *quiet_joined(struct core *core, const uint8_t *payload, size_t length)
{
    size_t cursor = 0;
    const char *error = NULL;
    for (const char *field; !error && (field = fields_next(payload, length, &cursor));) {
        const char *stream = field_value(field, "stream");
        if (stream)
            error = take_stream(core, stream);
    }
    if (!error && core->quiet.joins) {
        core->quiet.joins--;
        if (!core->quiet.is_on)
            drop_orphans(core);
    } else if (!error) {
        durable_grant_held(core); /* for one that goes on elsewhere */
    }
    return error;
}
