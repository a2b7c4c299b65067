/* Durable streams: they belong to the VM, write to the journal whether or not
 * anybody is connected, and end at their deadline. */
#include "core.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_MS 5000u               /* from SIGTERM to SIGKILL, and on to the VM's end */
#define DEADLINE_MAX_MS (1ull << 45)    /* a thousand years */
#define WINDOW WIRE_DURABLE_WINDOW_BYTES
#define GRANTS_A_SECOND 16u             /* of one channel, when the log's rate is the limit */

static void exit_fields(struct queue *fields, const struct durable *durable)
{
    field_append(fields, "timed_out=%d", durable->has_timed_out);
    field_append(fields, "out=%" PRIu64, durable->channels[WIRE_OUT].offset);
    field_append(fields, "err=%" PRIu64, durable->channels[WIRE_ERR].offset);
    field_append(fields, "ended_ns=%" PRIu64, durable->ended_ns);
}

void durable_tell_exit(struct connection *connection, const struct durable *durable)
{
    struct queue fields = {0};
    exit_fields(&fields, durable);
    struct wire_header header = {.kind = WIRE_EXIT,
                                 .stream = durable->id,
                                 .value = durable->wait_status,
                                 .length = (uint32_t)queue_length(&fields)};
    connection_frame(connection, &header, queue_head(&fields));
    queue_free(&fields);
}

static void tell_state(struct connection *connection, const struct durable *durable)
{
    struct wire_header header = {.kind = WIRE_OPEN,
                                 .stream = durable->id,
                                 .channel = WIRE_OUT,
                                 .value = durable->state};
    connection_frame(connection, &header, NULL);
    if (durable->state == DURABLE_OVER)
        durable_tell_exit(connection, durable);
}

/* Journal, then state file, then connections: a notice is never ahead of what it is about. */
static void finish(struct core *core, struct durable *durable, uint32_t wait_status)
{
    durable->state = DURABLE_OVER;
    durable->wait_status = wait_status;
    durable->ended_ns = core->host->wall_ns();
    for (unsigned i = 0; i < core->running_count; i++)
        if (core->running[i] == durable)
            core->running[i--] = core->running[--core->running_count];

    struct queue fields = {0};
    field_append(&fields, "status=%" PRIu32, wait_status);
    exit_fields(&fields, durable);
    struct record record = {.channel = WIRE_OUT,
                            .kind = RECORD_EXIT,
                            .stream = (uint16_t)durable->id,
                            .offset = durable->channels[WIRE_OUT].offset,
                            .payload = queue_head(&fields),
                            .length = queue_length(&fields)};
    bool is_journaled = core->host->journal_append(&record);
    queue_free(&fields);
    if (!is_journaled)
        core_end_disk(core, "the journal");
    if (!core->host->save_durable(durable))
        core_end_disk(core, "the state file");
    for (struct connection *each = core->connections; each < core->connections + CONNECTIONS_MAX;
         each++) {
        if (!each->is_open || !each->has_hello)
            continue;
        connection_tell_journal(core, each);
        durable_tell_exit(each, durable);
    }
}

/* NULL, or why this cannot be a durable stream. */
static const char *objection(const struct core *core, const struct wire_header *header,
                             const uint8_t *payload)
{
    size_t cursor = 0;
    const char *word = fields_next(payload, header->length, &cursor);
    if (!word || strcmp(word, "exec") != 0)
        return "a durable stream can only be an exec";
    if (fields_get(payload, header->length, "stdin"))
        return "a durable stream has no input";
    if (core->join != JOINED)
        return "the agent has not joined";
    if (core_open_streams(core) >= WIRE_STREAMS_MAX)
        return "too many streams are open in this VM";
    return NULL;
}

static struct durable *make(struct core *core, const struct wire_header *header)
{
    struct durable *durable = calloc(1, sizeof *durable);
    if (!durable)
        abort();
    durable->id = header->stream;
    durable->state = DURABLE_RUNNING;
    durable->opened_ns = core->host->wall_ns();
    durable->channels[WIRE_OUT].credit = WIRE_WINDOW_BYTES;
    durable->channels[WIRE_ERR].credit = WIRE_WINDOW_BYTES;
    uint64_t after_ms = header->value < DEADLINE_MAX_MS ? header->value : DEADLINE_MAX_MS;
    durable->next_ms = after_ms ? core->now_ms + after_ms : NEVER;
    core->durables[durable->id] = durable;
    core->running[core->running_count++] = durable;
    return durable;
}

void durable_open(struct core *core, struct connection *connection,
                  const struct wire_header *header, const uint8_t *payload)
{
    struct durable *durable = core->durables[header->stream];
    if (!durable) {
        const char *error = objection(core, header, payload);
        if (error) {
            connection_refuse(connection, header->stream, error);
            return;
        }
        durable = make(core, header);
        if (!core->host->save_durable(durable)) {
            core_end_disk(core, "the state file");
            return;
        }
        queue_frame(&core->to_agent, header, payload);
    }
    tell_state(connection, durable);
}

bool durable_resume(struct core *core, const struct durable *saved)
{
    bool is_running = saved->state == DURABLE_RUNNING;
    if (core->durables[saved->id] || (is_running && core->running_count == WIRE_STREAMS_MAX))
        return false;
    struct durable *durable = malloc(sizeof *durable);
    if (!durable)
        abort();
    *durable = *saved;
    durable->next_ms = saved->left_ms < DEADLINE_MAX_MS ? core->now_ms + saved->left_ms : NEVER;
    for (uint8_t which = WIRE_OUT; which <= WIRE_ERR; which++) {
        struct channel *channel = &durable->channels[which];
        /* What it was granted before is at most this, and it is told so when it has joined. */
        channel->credit = channel->offset + WINDOW;
        durable->is_held[which] = is_running && !channel->has_ended;
        durable->is_excused[which] = true;
    }
    core->durables[durable->id] = durable;
    if (is_running)
        core->running[core->running_count++] = durable;
    return true;
}

void durable_limit(struct core *core, uint64_t rate, uint64_t burst)
{
    bucket_init(&core->log, rate, burst, core->now_ms);
}

/* Less than this is not granted: credit must not come in crumbs. */
static uint64_t least_grant(const struct core *core)
{
    uint64_t least = core->log.rate / GRANTS_A_SECOND;
    if (least < LOG_BURST_MIN)
        least = LOG_BURST_MIN;
    if (least > WINDOW / 2)
        least = WINDOW / 2;
    return least < core->log.burst ? least : core->log.burst;
}

/* Let a channel send `bytes` more, a window at most. */
static void grant(struct core *core, struct durable *durable, uint8_t which, uint64_t bytes)
{
    struct channel *channel = &durable->channels[which];
    uint64_t room = WINDOW - (channel->credit - channel->offset);
    channel->credit += bytes < room ? bytes : room;
    durable->is_held[which] = false;
    core_send_agent(core, WIRE_CREDIT, durable->id, which, channel->credit);
}

/* Grant what the log's rate allows, or hold the channel until it does. */
static void grant_or_hold(struct core *core, struct durable *durable, uint8_t which)
{
    int64_t allowed = core->log.rate ? bucket_bytes(&core->log) : WINDOW;
    if (core->quiet.is_on) {
        durable->is_held[which] = true;
    } else if (!core->log.rate || allowed >= (int64_t)least_grant(core)) {
        grant(core, durable, which, (uint64_t)allowed);
    } else if (durable->is_excused[which]) {
        durable->is_excused[which] = false;
        grant(core, durable, which, WINDOW);
    } else {
        durable->is_held[which] = true;
    }
}

/* What its pipes hold, or will when it gets there, must not keep the EXIT of a process
 * that is to end. */
static void send_signal(struct core *core, struct durable *durable, uint64_t number)
{
    core_send_agent(core, WIRE_SIGNAL, durable->id, 0, number);
    for (uint8_t which = WIRE_OUT; which <= WIRE_ERR; which++) {
        durable->is_excused[which] = true;
        if (durable->is_held[which])
            grant_or_hold(core, durable, which);
    }
}

void durable_signal(struct core *core, const struct wire_header *header)
{
    struct durable *durable = core->durables[header->stream];
    if (durable && durable->state == DURABLE_RUNNING)
        send_signal(core, durable, header->value);
}

static void offence(struct core *core, const struct durable *durable, const char *what)
{
    core_end(core, END_AGENT_DIED, "the agent broke the protocol: %s (durable stream %" PRIu32 ")",
             what, durable->id);
}

static void take_data(struct core *core, struct durable *durable,
                      const struct wire_header *header, const uint8_t *payload)
{
    struct channel *channel = &durable->channels[header->channel];
    if (channel->has_ended || header->value != channel->offset ||
        header->length > channel->credit - channel->offset) {
        offence(core, durable, "data out of order or beyond its credit");
        return;
    }
    if (!header->length)
        return;
    struct record record = {.channel = header->channel,
                            .kind = RECORD_DATA,
                            .stream = (uint16_t)durable->id,
                            .offset = channel->offset,
                            .payload = payload,
                            .length = header->length};
    if (!core->host->journal_append(&record)) {
        core_end_disk(core, "the journal");
        return;
    }
    channel->offset += header->length;
    if (core->log.rate) {
        bucket_fill(&core->log, core->now_ms);
        bucket_take(&core->log, header->length);
    }
    if (channel->credit - channel->offset < WINDOW / 2)
        grant_or_hold(core, durable, header->channel);
}

static void take_eof(struct core *core, struct durable *durable, const struct wire_header *header)
{
    struct channel *channel = &durable->channels[header->channel];
    if (channel->has_ended || header->value != channel->offset)
        offence(core, durable, "a wrong end of a channel");
    channel->has_ended = true;
    durable->is_held[header->channel] = false;
}

static void take_reset(struct core *core, struct durable *durable,
                       const struct wire_header *header, const uint8_t *payload)
{
    const char *error = fields_get(payload, header->length, "error");
    char text[512];
    snprintf(text, sizeof text, "stream %" PRIu32 " was refused inside: %.400s", durable->id,
             error ? error : "no reason given");
    journal_note(core, text);
    finish(core, durable, 127u << 8);
}

void durable_from_agent(struct core *core, const struct wire_header *header,
                        const uint8_t *payload)
{
    struct durable *durable = core->durables[header->stream];
    if (durable->state == DURABLE_OVER)
        return;
    switch (header->kind) {
    case WIRE_DATA:
        take_data(core, durable, header, payload);
        return;
    case WIRE_EOF:
        take_eof(core, durable, header);
        return;
    case WIRE_EXIT:
        if (header->value > UINT32_MAX)
            offence(core, durable, "a wrong exit status");
        else if (core->host->is_out_of_memory())
            /* What the kernel took from under the script's process is not the script's doing. */
            core_end(core, END_OUT_OF_MEMORY, "a process of the VM was killed for its memory");
        else
            finish(core, durable, (uint32_t)header->value);
        return;
    case WIRE_RESET:
        take_reset(core, durable, header, payload);
        return;
    default: /* CREDIT: it has no channel in */
        offence(core, durable, "credit for a channel it has not");
    }
}

static void lose_patience(struct core *core, struct durable *durable)
{
    switch (durable->patience++) {
    case PATIENCE_WHOLE:
        durable->has_timed_out = true;
        send_signal(core, durable, SIGTERM);
        break;
    case PATIENCE_TERMINATED:
        send_signal(core, durable, SIGKILL);
        break;
    case PATIENCE_KILLED:
        finish(core, durable, SIGKILL);
        core_end(core, END_KILLED, "stream %" PRIu32 " outlived its deadline and SIGKILL",
                 durable->id);
        return;
    }
    durable->next_ms = core->now_ms + PATIENCE_MS;
}

/* Grant what was held back, all alike; whether some is still held. */
static bool grant_held(struct core *core)
{
    bool is_any_held = false;
    if (core->log.rate)
        bucket_fill(&core->log, core->now_ms);
    for (unsigned i = 0; i < core->running_count; i++) {
        struct durable *durable = core->running[i];
        for (uint8_t which = WIRE_OUT; which <= WIRE_ERR; which++) {
            if (durable->is_held[which])
                grant_or_hold(core, durable, which);
            is_any_held |= durable->is_held[which];
        }
    }
    return is_any_held;
}

void durable_grant_held(struct core *core) { grant_held(core); }

/* Returns when some that is still held may be granted. */
static uint64_t release_held(struct core *core)
{
    if (!core->log.rate || !grant_held(core))
        return NEVER;
    return core->now_ms + bucket_wait_ms(&core->log, least_grant(core));
}

/* While the VM is being saved it stands still, and so does its time. */
uint64_t durable_tick(struct core *core)
{
    if (core->quiet.is_on)
        return NEVER;
    for (unsigned i = 0; i < core->running_count && !core->end; i++)
        if (core->running[i]->next_ms <= core->now_ms)
            lose_patience(core, core->running[i]);
    uint64_t next = release_held(core);
    for (unsigned i = 0; i < core->running_count; i++)
        if (core->running[i]->next_ms < next)
            next = core->running[i]->next_ms;
    return next;
}

void durable_save_running(struct core *core)
{
    for (unsigned i = 0; i < core->running_count; i++)
        core->host->save_durable(core->running[i]);
}

bool journal_note(struct core *core, const char *text)
{
    struct queue line = {0};
    queue_append(&line, text, strlen(text));
    queue_append(&line, "\n", 1);
    struct record record = {.channel = CHANNEL_SYSTEM,
                            .kind = RECORD_DATA,
                            .offset = core->system_offset,
                            .payload = queue_head(&line),
                            .length = queue_length(&line)};
    bool is_journaled = core->host->journal_append(&record);
    core->system_offset += queue_length(&line);
    queue_free(&line);
    if (!is_journaled)
        core_end_disk(core, "the journal");
    return is_journaled;
}
