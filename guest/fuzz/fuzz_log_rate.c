/* The rate of the log, by a clock that the script moves: an agent prints on all
 * durable streams as much as its credit lets it. What it can never print is more
 * than burst and rate allow; and when the clock goes from one wake-up to the next,
 * it is never less either. No grant is a crumb, and a signal frees what is held.
 */
#include "../shim/core.h"
#include "script.h"

#define STREAMS 2
#define WAKE_UPS 4
#define STEP_MAX_MS (10u * 60u * 1000u)

static struct core core;
static uint64_t journaled;
static uint64_t granted[STREAMS + 1][3];
static uint64_t windows; /* what was given beyond the rate: first credit, and by signals */

/* --- the world --- */

static uint64_t wall_ns(void) { return core.now_ms * 1000000u; }

static bool journal_append(const struct record *record)
{
    journaled += record->kind == RECORD_DATA ? record->length : 0;
    return true;
}

static uint64_t journal_end(void) { return journaled; }
static bool save_durable(const struct durable *durable) { return durable != NULL; }
static bool save_numbers(uint32_t next_id, uint64_t offset) { return next_id || offset; }
static void run_engine(void) {}
static bool start_engine(char *error, size_t size) { return error && size; }
static bool has_freezer(void) { return false; }
static bool freezer_write(bool is_frozen) { return is_frozen; }
static bool freezer_is_done(void) { return true; }
static void raise_weight(void) {}
static bool set_fence(uint64_t after_ms) { return after_ms == 0; }
static bool is_out_of_memory(void) { return false; }

static const struct host host = {
    wall_ns,      journal_append, journal_end,  save_durable,  save_numbers,
    start_engine, run_engine,     has_freezer,  freezer_write, freezer_is_done,
    raise_weight, set_fence,      is_out_of_memory,
};

/* --- the two ends --- */

static void say(struct connection *connection, const struct wire_header *header,
                const char *fields)
{
    struct queue bytes = {0};
    queue_frame(&bytes, header, fields);
    if (connection)
        core_feed_connection(&core, connection, queue_head(&bytes), queue_length(&bytes));
    else
        core_feed_agent(&core, queue_head(&bytes), queue_length(&bytes));
    queue_free(&bytes);
}

static void say_fields(struct connection *connection, struct wire_header header,
                       const char *fields, size_t length)
{
    header.length = (uint32_t)length;
    say(connection, &header, fields);
}

/* Begin with STREAMS durable streams, the agent's part and the daemon's. */
static struct connection *begin(void)
{
    static const char nonce[] = "00112233445566778899aabbccddeeff";
    static const char join[] = "version=1\0nonce=00112233445566778899aabbccddeeff";
    static const char exec[] = "exec\0arg=yes";
    core_init(&core, &host, "vm", "1", nonce);
    struct connection *daemon = core_connect(&core, true);
    say_fields(daemon, (struct wire_header){.kind = WIRE_REQUEST}, "start", sizeof "start");
    say_fields(NULL, (struct wire_header){.kind = WIRE_JOIN}, join, sizeof join);
    for (uint32_t id = 1; id <= STREAMS; id++)
        say_fields(daemon,
                   (struct wire_header){.kind = WIRE_OPEN, .stream = id, .channel = WIRE_OUT},
                   exec, sizeof exec);
    REQUIRE(core.running_count == STREAMS);
    for (uint32_t id = 1; id <= STREAMS; id++)
        granted[id][WIRE_OUT] = granted[id][WIRE_ERR] = WIRE_WINDOW_BYTES;
    return daemon;
}

/* Print on a channel what its credit allows, `most` at most. */
static void print(uint32_t id, uint8_t which, uint64_t most)
{
    static const char zeros[WIRE_PAYLOAD_MAX];
    const struct channel *channel = &core.durables[id]->channels[which];
    while (most && channel->credit > channel->offset) {
        uint64_t length = channel->credit - channel->offset;
        length = length < most ? length : most;
        length = length < sizeof zeros ? length : sizeof zeros;
        struct wire_header header = {.kind = WIRE_DATA,
                                     .stream = id,
                                     .channel = which,
                                     .value = channel->offset,
                                     .length = (uint32_t)length};
        say(NULL, &header, zeros);
        most -= length;
    }
}

/* --- what must hold --- */

static void check_credit(void)
{
    for (size_t at = 0, length = queue_length(&core.to_agent); at < length;) {
        struct wire_header header;
        if (memcmp(queue_head(&core.to_agent) + at, WIRE_MAGIC, WIRE_MAGIC_BYTES) == 0) {
            at += WIRE_MAGIC_BYTES;
            continue;
        }
        REQUIRE(wire_decode(queue_head(&core.to_agent) + at, &header));
        at += WIRE_HEADER_BYTES + header.length;
        if (header.kind != WIRE_CREDIT)
            continue;
        uint64_t *before = &granted[header.stream][header.channel];
        REQUIRE(header.value - *before >= LOG_BURST_MIN);
        *before = header.value;
    }
    queue_take(&core.to_agent, queue_length(&core.to_agent));
}

/* `most` is what burst and rate had allowed until now. */
static void check_amount(uint64_t most)
{
    uint64_t open = 0;
    for (uint32_t id = 1; id <= STREAMS; id++)
        for (uint8_t which = WIRE_OUT; which <= WIRE_ERR; which++) {
            const struct channel *channel = &core.durables[id]->channels[which];
            REQUIRE(channel->credit - channel->offset <= WIRE_DURABLE_WINDOW_BYTES);
            open += WIRE_DURABLE_WINDOW_BYTES;
        }
    REQUIRE(journaled <= most + open + windows);
}

/* Whoever is held has to wait: nothing that could be granted is left. */
static void check_held(uint64_t next_ms)
{
    bool is_any_held = false;
    for (uint32_t id = 1; id <= STREAMS; id++) {
        const struct durable *durable = core.durables[id];
        for (uint8_t which = WIRE_OUT; which <= WIRE_ERR; which++) {
            is_any_held |= durable->is_held[which];
            REQUIRE(durable->is_held[which] ||
                    durable->channels[which].credit > durable->channels[which].offset);
        }
    }
    REQUIRE(!is_any_held || (next_ms > core.now_ms && next_ms != NEVER));
    REQUIRE(!is_any_held || bucket_bytes(&core.log) < (int64_t)WIRE_DURABLE_WINDOW_BYTES / 2);
}

static void send_signal(struct connection *daemon, uint32_t id)
{
    struct wire_header header = {.kind = WIRE_SIGNAL, .stream = id, .value = 15};
    say(daemon, &header, NULL);
    windows += 2 * WIRE_DURABLE_WINDOW_BYTES;
    REQUIRE(!core.durables[id]->is_held[WIRE_OUT] && !core.durables[id]->is_held[WIRE_ERR]);
}

static void step(struct script *script, struct connection *daemon, uint64_t *next_ms)
{
    uint8_t what = script_byte(script);
    uint32_t id = 1 + what % STREAMS;
    uint8_t which = what & 0x40 ? WIRE_ERR : WIRE_OUT;
    switch (what % 8) {
    case 0:
        send_signal(daemon, id);
        break;
    case 1:
        core.now_ms += script_number(script, 3) % STEP_MAX_MS;
        break;
    case 2:
    case 3:
        if (*next_ms != NEVER && *next_ms > core.now_ms)
            core.now_ms = *next_ms;
        break;
    case 4:
        print(id, which, script_number(script, 2));
        break;
    default:
        print(id, which, NEVER);
    }
    *next_ms = core_tick(&core);
    REQUIRE(!core.end);
}

/* From wake-up to wake-up, printing all the time: nothing of the rate is lost. */
static void check_pace(uint64_t rate, uint64_t burst)
{
    for (uint32_t id = 1; id <= STREAMS; id++)
        print(id, WIRE_OUT, NEVER);
    uint64_t next_ms = core_tick(&core);
    uint64_t began_ms = core.now_ms, before = journaled;
    int64_t debt = -bucket_bytes(&core.log);
    for (int i = 0; i < WAKE_UPS; i++) {
        REQUIRE(next_ms != NEVER && next_ms > core.now_ms);
        core.now_ms = next_ms;
        core_tick(&core);
        REQUIRE(!core.durables[1]->is_held[WIRE_OUT]);
        for (uint32_t id = 1; id <= STREAMS; id++)
            print(id, WIRE_OUT, NEVER);
        next_ms = core_tick(&core);
    }
    uint64_t allowed = (core.now_ms - began_ms) * rate / 1000;
    uint64_t printed = journaled - before;
    /* What is left in the bucket is less than a grant. */
    REQUIRE((int64_t)printed >= (int64_t)allowed - debt - WIRE_DURABLE_WINDOW_BYTES / 2);
    REQUIRE(printed <= allowed + burst + STREAMS * WIRE_DURABLE_WINDOW_BYTES);
    check_credit();
}

/* Each signal is good for one window, whether it came before or after the hold. */
static void check_signal(struct connection *daemon)
{
    const struct durable *durable = core.durables[1];
    uint64_t before = durable->channels[WIRE_OUT].offset;
    REQUIRE(durable->is_held[WIRE_OUT]);
    send_signal(daemon, 1);
    send_signal(daemon, 1);
    print(1, WIRE_OUT, NEVER);
    uint64_t printed = durable->channels[WIRE_OUT].offset - before;
    REQUIRE(durable->is_held[WIRE_OUT]);
    REQUIRE(printed > WIRE_DURABLE_WINDOW_BYTES && printed <= 2 * WIRE_DURABLE_WINDOW_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct script script = {bytes, bytes + count};
    journaled = windows = 0;
    struct connection *daemon = begin();
    uint64_t rate = 1 + script_number(&script, 3) % (2u << 20);
    uint64_t burst = LOG_BURST_MIN + 16 * script_number(&script, 2);
    durable_limit(&core, rate, burst);
    uint64_t began_ms = core.now_ms, next_ms = NEVER;
    while (!script_is_over(&script)) {
        step(&script, daemon, &next_ms);
        check_amount(burst + (core.now_ms - began_ms) * rate / 1000);
        check_held(next_ms);
        check_credit();
        core_sent(daemon, queue_length(&daemon->out));
    }
    check_pace(rate, burst);
    check_signal(daemon);
    core_free(&core);
    return 0;
}
