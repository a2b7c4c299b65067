/* The shim's core between an agent and daemons that both send anything. The agent
 * may end the VM by an offence, and nothing else; what leaves the core are whole
 * frames, of streams that the far end of that link knows; the journal has no gap.
 */
#include <errno.h>

#include "../shim/core.h"
#include "script.h"

#define PEERS 4
#define IDS 6

static const char nonce[] = "00112233445566778899aabbccddeeff";
static struct core core;
static struct connection *peers[PEERS];
static struct script *faults; /* where the world takes its moods from */
static uint64_t journal_bytes;
static uint64_t printed[WIRE_DURABLE_ID_MAX + 1][3];
static bool is_over[WIRE_DURABLE_ID_MAX + 1];

/* --- the world --- */

static bool succeeds(void)
{
    errno = EIO;
    return script_byte(faults) != 0x5a;
}

static uint64_t wall_ns(void) { return core.now_ms * 1000000u; }

static bool journal_append(const struct record *record)
{
    const uint8_t *payload = record->payload;
    REQUIRE(record->length > 0 && payload);
    journal_bytes += record->length + 0u * payload[record->length - 1];
    if (record->channel == CHANNEL_SYSTEM)
        return succeeds();
    REQUIRE(record->stream && record->stream <= WIRE_DURABLE_ID_MAX && !is_over[record->stream]);
    uint64_t *offset = &printed[record->stream][record->channel];
    REQUIRE(record->offset == *offset);
    if (record->kind == RECORD_DATA)
        *offset += record->length;
    else
        is_over[record->stream] = true;
    return succeeds();
}

static uint64_t journal_end(void) { return journal_bytes; }

static bool save_durable(const struct durable *durable)
{
    REQUIRE(durable->state == DURABLE_RUNNING || is_over[durable->id]);
    return succeeds();
}

static bool save_numbers(uint32_t next_id, uint64_t system_offset)
{
    REQUIRE(next_id >= WIRE_TRANSIENT_ID_MIN && system_offset <= journal_bytes);
    return succeeds();
}

static void run_engine(void) {}

static bool start_engine(char *error, size_t size)
{
    snprintf(error, size, "no");
    return succeeds();
}

static bool has_freezer(void) { return succeeds(); }
static bool freezer_write(bool is_frozen) { return succeeds() || is_frozen; }
static bool freezer_is_done(void) { return succeeds(); }
static void raise_weight(void) {}
static bool set_fence(uint64_t after_ms) { return after_ms != 77; }
static bool is_out_of_memory(void) { return !succeeds(); }

static const struct host host = {
    wall_ns,      journal_append, journal_end,  save_durable,  save_numbers,
    start_engine, run_engine,     has_freezer,  freezer_write, freezer_is_done,
    raise_weight, set_fence,      is_out_of_memory,
};

/* --- what leaves the core --- */

static void check_frames(const struct queue *queue, bool is_to_agent)
{
    size_t length = queue_length(queue);
    for (size_t at = 0; at < length;) {
        const uint8_t *frame = queue_head(queue) + at;
        struct wire_header header;
        if (is_to_agent && length - at >= WIRE_MAGIC_BYTES &&
            memcmp(frame, WIRE_MAGIC, WIRE_MAGIC_BYTES) == 0) {
            at += WIRE_MAGIC_BYTES;
            continue;
        }
        REQUIRE(length - at >= WIRE_HEADER_BYTES && wire_decode(frame, &header));
        at += WIRE_HEADER_BYTES + header.length;
        REQUIRE(at <= length);
        if (is_to_agent) /* nothing here that an agent would call an offence */
            REQUIRE(header.kind == WIRE_JOIN || header.stream < core.next_id);
        else
            REQUIRE(header.kind != WIRE_JOIN && header.kind != WIRE_REQUEST);
        if (is_to_agent && (header.kind == WIRE_DATA || header.kind == WIRE_EOF))
            REQUIRE(header.channel == WIRE_IN && header.stream >= WIRE_TRANSIENT_ID_MIN);
        if (is_to_agent && header.kind == WIRE_CREDIT)
            REQUIRE(header.channel != WIRE_IN);
    }
}

static void drain(void)
{
    check_frames(&core.to_agent, true);
    queue_take(&core.to_agent, queue_length(&core.to_agent));
    for (size_t i = 0; i < PEERS; i++) {
        if (!peers[i])
            continue;
        check_frames(&peers[i]->out, false);
        core_sent(peers[i], queue_length(&peers[i]->out));
    }
}

static void check_counts(void)
{
    unsigned open = 0;
    for (unsigned i = 0; i < core.running_count; i++)
        REQUIRE(core.running[i]->state == DURABLE_RUNNING);
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        const struct transient *transient = &core.transients[i];
        open += transient->id != 0;
        REQUIRE(!transient->id || transient->owner->is_open);
        const struct channel *channels = transient->channels;
        for (size_t j = 0; j < 3 && transient->id; j++)
            REQUIRE(channels[j].offset <= channels[j].credit);
    }
    REQUIRE(open + core.running_count <= WIRE_STREAMS_MAX);
    REQUIRE(!core.freeze.is_on || core.freeze.owner->is_open);
    REQUIRE(!core.start.connection || core.start.connection->is_open);
    REQUIRE(!core.holder || core.holder->is_open);
}

/* --- what enters it --- */

static void disconnect(size_t which)
{
    if (!peers[which])
        return;
    bool is_holder = core.holder == peers[which];
    core_disconnect(&core, peers[which]);
    REQUIRE(!is_holder || core.end);
    REQUIRE(!core.freeze.is_on || core.freeze.owner != peers[which]);
    peers[which] = NULL;
}

/* What the shim would have to receive next on a channel, for most frames to be right. */
static uint64_t expected(const struct wire_header *header, const struct connection *connection)
{
    bool is_credit = header->kind == WIRE_CREDIT;
    if (header->stream <= WIRE_DURABLE_ID_MAX && core.durables[header->stream]) {
        const struct channel *channel = &core.durables[header->stream]->channels[header->channel];
        return is_credit ? channel->credit : channel->offset;
    }
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++) {
        const struct transient *each = &core.transients[i];
        bool is_it = connection ? each->owner == connection && each->far_id == header->stream
                                : each->id == header->stream;
        if (each->id && is_it)
            return is_credit ? each->channels[header->channel].credit + 1000
                             : each->channels[header->channel].offset;
    }
    return 0;
}

static const struct {
    const char *text;
    size_t length;
} requests[] = {
#define FIELDS(text) {text, sizeof(text)}
    FIELDS("hello\0version=1\0vm=vm\0epoch=1"),
    FIELDS("hello\0version=2"),
    FIELDS("start"),
    FIELDS("scope"),
    FIELDS("note\0text=hello"),
    FIELDS("freeze\0deadline_ms=50"),
    FIELDS("freeze\0deadline_ms=18446744073709551615"),
    FIELDS("thaw"),
    FIELDS("quiesce"),
    FIELDS("proceed"),
    FIELDS("hold"),
    FIELDS("hold"),
    FIELDS("claim"),
    FIELDS("freeze\0deadline_ms=0"),
    FIELDS("fence\0deadline_ms=77"),
    FIELDS("kill\0reason=fenced"),
};

static const struct {
    const char *text;
    size_t length;
} opens[] = {
    FIELDS("exec\0arg=true"),
    FIELDS("exec\0arg=cat\0stdin=open"),
    FIELDS("read\0path=/x"),
    {"exec", 4},
    {"", 0},
};

/* A frame with fields that mean something. */
static void feed_frame(struct script *script, struct connection *connection)
{
    static const uint32_t stream_ids[IDS] = {1, 2, WIRE_DURABLE_ID_MAX, 0x10000, 0x10001, 0x10002};
    static const uint8_t from_agent[] = {WIRE_DATA, WIRE_DATA, WIRE_EOF, WIRE_CREDIT, WIRE_EXIT,
                                         WIRE_RESET};
    static const uint8_t from_daemon[] = {WIRE_OPEN, WIRE_OPEN, WIRE_REQUEST, WIRE_DATA, WIRE_EOF,
                                          WIRE_CREDIT, WIRE_SIGNAL, WIRE_RESET};
    static const uint8_t zeros[WIRE_PAYLOAD_MAX];
    uint8_t choice = script_byte(script), how = script_byte(script);
    struct wire_header header = {.stream = stream_ids[choice % IDS]};
    header.kind = connection ? from_daemon[how % 8] : from_agent[how % 6];
    bool is_durable = header.stream <= WIRE_DURABLE_ID_MAX;
    bool is_inward = !connection == (header.kind == WIRE_CREDIT);
    header.channel = is_inward ? WIRE_IN : 1 + (choice >> 7);
    const void *payload = zeros;
    header.length = how & 0x40 ? (uint32_t)script_number(script, 3) % 65537 : script_byte(script);
    if (header.kind == WIRE_REQUEST) {
        size_t which = script_byte(script) % (sizeof requests / sizeof *requests);
        payload = requests[which].text;
        header.length = (uint32_t)requests[which].length;
        header.stream = 0;
        header.channel = 0;
    } else if (header.kind == WIRE_OPEN) {
        size_t which = script_byte(script) % (sizeof opens / sizeof *opens);
        payload = opens[which].text;
        header.length = (uint32_t)opens[which].length;
        header.channel = is_durable ? WIRE_OUT : WIRE_IN;
        header.value = script_byte(script);
    } else {
        header.value = header.kind == WIRE_EXIT ? how : expected(&header, connection);
    }
    if (how >= 0xf0) /* not by the book */
        header.channel = (uint8_t)(script_byte(script) % 3);
    struct queue bytes = {0};
    queue_frame(&bytes, &header, payload);
    if (connection)
        core_feed_connection(&core, connection, queue_head(&bytes), queue_length(&bytes));
    else
        core_feed_agent(&core, queue_head(&bytes), queue_length(&bytes));
    queue_free(&bytes);
}

static void feed_raw(struct script *script, struct connection *connection)
{
    const uint8_t *bytes;
    size_t count = script_bytes(script, script_byte(script), &bytes);
    if (connection)
        core_feed_connection(&core, connection, bytes, count);
    else
        core_feed_agent(&core, bytes, count);
}

static void send_request(struct connection *connection, size_t which)
{
    struct wire_header header = {.kind = WIRE_REQUEST,
                                 .length = (uint32_t)requests[which].length};
    struct queue bytes = {0};
    queue_frame(&bytes, &header, requests[which].text);
    core_feed_connection(&core, connection, queue_head(&bytes), queue_length(&bytes));
    queue_free(&bytes);
}

static void join(void)
{
    char fields[128];
    int length = snprintf(fields, sizeof fields, "version=1%cnonce=%s", 0, nonce) + 1;
    struct wire_header header = {.kind = WIRE_JOIN, .length = (uint32_t)length};
    struct queue bytes = {0};
    queue_frame(&bytes, &header, fields);
    core_feed_agent(&core, queue_head(&bytes), queue_length(&bytes));
    queue_free(&bytes);
}

/* More streams than there may be. */
static void open_crowd(struct connection *connection)
{
    struct queue bytes = {0};
    for (uint32_t i = 0; i <= WIRE_STREAMS_MAX; i++) {
        struct wire_header header = {
            .kind = WIRE_OPEN, .stream = 0x20000 + i, .length = (uint32_t)opens[0].length};
        queue_frame(&bytes, &header, opens[0].text);
    }
    core_feed_connection(&core, connection, queue_head(&bytes), queue_length(&bytes));
    queue_free(&bytes);
}

static void step(struct script *script)
{
    uint8_t what = script_byte(script);
    size_t which = what >> 6;
    switch (what % 16) {
    case 0:
        disconnect(which);
        return;
    case 1:
        if (!peers[which])
            peers[which] = core_connect(&core, false);
        return;
    case 2:
        core.now_ms += script_number(script, 2);
        REQUIRE(core_tick(&core) > core.now_ms || core.end);
        return;
    case 3:
        core_publish(&core);
        return;
    case 4:
        drain();
        return;
    case 5:
    case 6:
        if (which == 0)
            feed_raw(script, NULL);
        else if (peers[which])
            feed_raw(script, peers[which]);
        return;
    case 7:
        if (peers[which])
            open_crowd(peers[which]);
        return;
    default:
        if (what & 1)
            feed_frame(script, NULL);
        else if (peers[which] && core_may_read(peers[which]))
            feed_frame(script, peers[which]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct script script = {bytes, bytes + count};
    struct script moods = {bytes, bytes};
    faults = &moods;
    journal_bytes = 0;
    memset(printed, 0, sizeof printed);
    memset(is_over, 0, sizeof is_over);
    core_init(&core, &host, "vm", "1", nonce);
    peers[0] = core_connect(&core, true);
    for (size_t i = 1; i < PEERS; i++)
        peers[i] = i == 1 ? core_connect(&core, false) : NULL;
    uint8_t mood = script_byte(&script);
    if (mood & 0x80)
        durable_limit(&core, 1 + 1000u * (mood & 0x70), LOG_BURST_MIN);
    if (mood % 8) { /* else the start is up to the script */
        send_request(peers[0], 2);
        join();
        send_request(peers[1], 0);
    }
    faults = &script;
    while (!core.end && !script_is_over(&script)) {
        step(&script);
        for (size_t i = 0; i < PEERS; i++)
            if (peers[i] && peers[i]->is_broken && !core.end)
                disconnect(i);
        if (!core.end)
            check_counts();
    }
    drain();
    core_free(&core);
    return 0;
}
