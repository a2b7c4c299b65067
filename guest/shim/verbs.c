/* What a connection may ask of the shim itself: a closed list. */
#include "core.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct request {
    struct connection *connection;
    uint64_t id;
    const uint8_t *payload;
    size_t length;
};

static void reply(struct connection *connection, uint64_t id, const struct queue *fields)
{
    struct wire_header header = {
        .kind = WIRE_REPLY, .value = id, .length = (uint32_t)queue_length(fields)};
    connection_frame(connection, &header, queue_head(fields));
}

void reply_ok(struct connection *connection, uint64_t id)
{
    struct queue fields = {0};
    field_append(&fields, "ok");
    reply(connection, id, &fields);
    queue_free(&fields);
}

void reply_error(struct connection *connection, uint64_t id, const char *format, ...)
{
    char text[960];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    struct queue fields = {0};
    field_append(&fields, "error=%s", text);
    reply(connection, id, &fields);
    queue_free(&fields);
}

static const char *field(const struct request *request, const char *key)
{
    return fields_get(request->payload, request->length, key);
}

/* False, and answered, when `deadline_ms` is not a number. */
static bool deadline(const struct request *request, uint64_t *after_ms)
{
    const char *text = field(request, "deadline_ms");
    char *end = NULL;
    errno = 0;
    *after_ms = text && *text >= '0' && *text <= '9' ? strtoull(text, &end, 10) : 0;
    if (end && !*end && !errno)
        return true;
    reply_error(request->connection, request->id, "deadline_ms must be a number of milliseconds");
    return false;
}

/* Running streams first: they alone are not told again by an EXIT. */
static void list_durables(const struct core *core, struct queue *fields)
{
    for (unsigned i = 0; i < core->running_count; i++)
        field_append(fields, "durable=%" PRIu32 ":%d", core->running[i]->id, DURABLE_RUNNING);
    for (uint32_t id = 1; id <= WIRE_DURABLE_ID_MAX; id++) {
        const struct durable *durable = core->durables[id];
        if (durable && durable->state == DURABLE_OVER &&
            queue_length(fields) + 64 < WIRE_PAYLOAD_MAX)
            field_append(fields, "durable=%" PRIu32 ":%d", id, DURABLE_OVER);
    }
}

static void verb_hello(struct core *core, const struct request *request)
{
    const char *version = field(request, "version");
    const char *vm = field(request, "vm");
    const char *epoch = field(request, "epoch");
    if (!version || strcmp(version, "1") != 0) {
        reply_error(request->connection, request->id, "this shim speaks version 1");
        return;
    }
    if ((vm && strcmp(vm, core->vm) != 0) || (epoch && strcmp(epoch, core->epoch) != 0)) {
        reply_error(request->connection, request->id, "this is VM %s, epoch %s", core->vm,
                    core->epoch);
        return;
    }
    struct queue fields = {0};
    field_append(&fields, "ok");
    field_append(&fields, "version=%d", WIRE_VERSION);
    field_append(&fields, "vm=%s", core->vm);
    field_append(&fields, "epoch=%s", core->epoch);
    field_append(&fields, "agent=%s", core->agent_version);
    field_append(&fields, "journal=%" PRIu64, core->host->journal_end());
    list_durables(core, &fields);
    reply(request->connection, request->id, &fields);
    queue_free(&fields);
    request->connection->has_hello = true;
    request->connection->journal_told = core->host->journal_end();
    for (uint32_t id = 1; id <= WIRE_DURABLE_ID_MAX; id++)
        if (core->durables[id] && core->durables[id]->state == DURABLE_OVER)
            durable_tell_exit(request->connection, core->durables[id]);
}

static void verb_start(struct core *core, const struct request *request)
{
    char error[512];
    if (!request->connection->is_first || core->has_started) {
        reply_error(request->connection, request->id,
                    "start is for the first connection, and once");
        return;
    }
    core->has_started = true;
    core->start = (struct pending){request->connection, request->id};
    if (!core->host->start_engine(error, sizeof error))
        core_end(core, END_ENGINE_DIED, "%s", error);
    else
        core_ask_join(core);
}

static void verb_scope(struct core *core, const struct request *request)
{
    (void)core;
    request->connection->is_scoped = true;
    reply_ok(request->connection, request->id);
}

static void verb_note(struct core *core, const struct request *request)
{
    const char *text = field(request, "text");
    if (!text)
        reply_error(request->connection, request->id, "text is missing");
    else if (journal_note(core, text))
        reply_ok(request->connection, request->id);
}

static void verb_freeze(struct core *core, const struct request *request)
{
    uint64_t after_ms;
    if (deadline(request, &after_ms))
        freeze_ask(core, request->connection, request->id, after_ms);
}

static void verb_thaw(struct core *core, const struct request *request)
{
    if (freeze_undo(core))
        reply_ok(request->connection, request->id);
    else
        reply_error(request->connection, request->id, "the freezer cannot be written: %s",
                    strerror(errno));
}

static void verb_quiesce(struct core *core, const struct request *request)
{
    quiet_ask(core, request->connection, request->id);
}

static void verb_proceed(struct core *core, const struct request *request)
{
    const char *error = quiet_proceed(core, request->connection);
    if (error)
        reply_error(request->connection, request->id, "%s", error);
    else
        reply_ok(request->connection, request->id);
}

static void verb_hold(struct core *core, const struct request *request)
{
    /* The control connection holds for whoever will. */
    if (core->holder && core->holder != request->connection && !core->holder->is_first) {
        reply_error(request->connection, request->id, "another connection holds this VM");
        return;
    }
    core->holder = request->connection;
    reply_ok(request->connection, request->id);
}

/* One that cannot be thawed stays held: it is of no use, and ends with its holder. */
static void verb_claim(struct core *core, const struct request *request)
{
    if (core->holder != request->connection) {
        reply_error(request->connection, request->id, "this connection does not hold the VM");
        return;
    }
    if (!freeze_undo(core)) {
        reply_error(request->connection, request->id, "the freezer cannot be written: %s",
                    strerror(errno));
        return;
    }
    core->holder = NULL;
    core->host->raise_weight();
    reply_ok(request->connection, request->id);
}

static void verb_fence(struct core *core, const struct request *request)
{
    uint64_t after_ms;
    if (!deadline(request, &after_ms))
        return;
    if (core->host->set_fence(after_ms))
        reply_ok(request->connection, request->id);
    else
        reply_error(request->connection, request->id, "the fence cannot be set: %s",
                    strerror(errno));
}

/* Killing never fails for its reason: one that is not in the list becomes the detail. */
static void verb_kill(struct core *core, const struct request *request)
{
    static const char *const reasons[] = {
        [END_KILLED] = "killed",
        [END_OUT_OF_MEMORY] = "out_of_memory",
        [END_TOO_MANY_PROCESSES] = "too_many_processes",
        [END_ENGINE_DIED] = "engine_died",
        [END_AGENT_DIED] = "agent_died",
        [END_FENCED] = "fenced",
        [END_HOST_DISK_FULL] = "host_disk_full",
    };
    const char *reason = field(request, "reason");
    for (unsigned i = END_KILLED; reason && i <= END_HOST_DISK_FULL; i++)
        if (strcmp(reason, reasons[i]) == 0)
            core_end(core, (enum end_reason)i, "asked for");
    core_end(core, END_KILLED, "%s", reason ? reason : "asked for");
}

void verb_request(struct core *core, struct connection *connection, uint64_t id,
                  const uint8_t *payload, size_t length)
{
    static const struct {
        const char *name;
        void (*run)(struct core *core, const struct request *request);
    } verbs[] = {
        {"hello", verb_hello}, {"start", verb_start},   {"scope", verb_scope},
        {"note", verb_note},   {"freeze", verb_freeze}, {"thaw", verb_thaw},
        {"hold", verb_hold},   {"claim", verb_claim},   {"fence", verb_fence},
        {"kill", verb_kill},   {"quiesce", verb_quiesce}, {"proceed", verb_proceed},
    };
    struct request request = {connection, id, payload, length};
    size_t cursor = 0;
    const char *name = fields_next(payload, length, &cursor);
    if (connection->is_scoped) {
        reply_error(connection, id, "this connection may use streams only");
        return;
    }
    for (size_t i = 0; name && i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(name, verbs[i].name) == 0) {
            verbs[i].run(core, &request);
            return;
        }
    }
    reply_error(connection, id, "unknown verb: %.100s", name ? name : "");
}
