/* The agent's session with services that touch nothing. The far end keeps its own
 * account of what is allowed: each frame it sends must be taken or refused as that
 * says, and each frame it gets must keep to offsets, credit and the order of ends.
 */
#include <fcntl.h>

#include "../agent/session.h"
#include "script.h"

#define IDS 6

static const uint32_t ids[IDS] = {1, WIRE_DURABLE_ID_MAX, 0x10000, 0x10001, 0x8000, 0};
static const char join[] = "version=1\0nonce=00112233445566778899aabbccddeeff";

/* What the far end knows of the stream ids[i]. */
struct account {
    bool is_open;
    uint64_t in_sent, in_limit;
    bool in_ended;
    uint64_t received[2], granted[2];
    bool ended[2];
};

static struct account accounts[IDS];
static struct session session;
static size_t scanned;    /* of session.to_send */
static unsigned joins_due; /* asked and not answered */
static int zeros = -1;

/* --- services --- */

struct echo {
    size_t unread, unsent;
    uint32_t size;
};

static const char *echo_open(struct stream *stream, struct fields fields)
{
    (void)fields;
    stream->state = calloc(1, sizeof(struct echo));
    return NULL;
}

static void echo_data(struct stream *stream, const uint8_t *bytes, size_t count)
{
    struct echo *echo = stream->state;
    REQUIRE(count > 0);
    echo->unread += count + 0u * bytes[count - 1];
}

static void echo_abandon(struct stream *stream) { free(stream->state); }

static void echo_signal(struct stream *stream, int number)
{
    echo_abandon(stream);
    stream_exit(stream, (uint64_t)number, NULL);
}

static void echo_resize(struct stream *stream, uint16_t columns, uint16_t rows)
{
    struct echo *echo = stream->state;
    echo->size = (uint32_t)columns << 16 | rows;
}

static void echo_watch(struct stream *stream, struct poll_set *set)
{
    REQUIRE(poll_add(set, zeros, POLLIN) >= 1);
    if (stream_room(stream, WIRE_OUT))
        poll_by(set, 1);
}

static void echo_pump(struct stream *stream, const struct poll_set *set)
{
    struct echo *echo = stream->state;
    (void)set;
    stream_consumed(stream, echo->unread);
    echo->unsent += echo->unread;
    echo->unread = 0;
    if (echo->unsent && stream_room(stream, WIRE_OUT))
        echo->unsent -= (size_t)stream_send_from(stream, WIRE_OUT, zeros, echo->unsent);
    if (stream_room(stream, WIRE_ERR))
        stream_send(stream, WIRE_ERR, "!", 1);
    if (!stream->in.has_ended || echo->unsent)
        return;
    echo_abandon(stream);
    stream_send_eof(stream, WIRE_OUT);
    stream_send_eof(stream, WIRE_OUT);
    stream_exit(stream, 0, NULL);
}

static const char *source_open(struct stream *stream, struct fields fields)
{
    (void)fields;
    stream_send(stream, WIRE_ERR, "begin", 5);
    return NULL;
}

static void source_pump(struct stream *stream, const struct poll_set *set)
{
    (void)set;
    if (stream_room(stream, WIRE_OUT))
        stream_send_from(stream, WIRE_OUT, zeros, SIZE_MAX);
}

static const char *brief_open(struct stream *stream, struct fields fields)
{
    if (fields_get(fields.bytes, fields.length, "why"))
        return "refused";
    stream_fail(stream, 2);
    return NULL;
}

const struct service *service_find(const char *word)
{
    static const struct service services[] = {
        {.word = "echo",
         .open = echo_open,
         .data = echo_data,
         .signal = echo_signal,
         .resize = echo_resize,
         .abandon = echo_abandon,
         .watch = echo_watch,
         .pump = echo_pump},
        {.word = "source", .open = source_open, .pump = source_pump},
        {.word = "brief", .open = brief_open},
    };
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (strcmp(services[i].word, word) == 0)
            return &services[i];
    return NULL;
}

/* --- the far end: what comes --- */

static struct account *account_of(uint32_t id)
{
    for (size_t i = 0; i < IDS; i++)
        if (ids[i] == id)
            return &accounts[i];
    return NULL;
}

static void check_join(const struct wire_header *header, const uint8_t *payload)
{
    size_t cursor = 0, named = 0, open = 0;
    REQUIRE(joins_due-- > 0);
    for (const char *field; (field = fields_next(payload, header->length, &cursor));)
        named += field_value(field, "stream") != NULL;
    for (size_t i = 0; i < IDS; i++)
        open += accounts[i].is_open;
    REQUIRE(named == open);
}

static void check_frame(const struct wire_header *header, const uint8_t *payload)
{
    if (header->kind == WIRE_JOIN) {
        check_join(header, payload);
        return;
    }
    struct account *account = account_of(header->stream);
    size_t out = header->channel - (size_t)WIRE_OUT;
    REQUIRE(account && account->is_open);
    switch (header->kind) {
    case WIRE_DATA:
        REQUIRE(out < 2 && !account->ended[out] && header->value == account->received[out]);
        account->received[out] += header->length;
        REQUIRE(account->received[out] <= account->granted[out]);
        return;
    case WIRE_EOF:
        REQUIRE(out < 2 && !account->ended[out] && header->value == account->received[out]);
        account->ended[out] = true;
        return;
    case WIRE_CREDIT:
        REQUIRE(header->channel == WIRE_IN && header->value > account->in_limit);
        REQUIRE(header->value <= account->in_sent + WIRE_WINDOW_BYTES);
        account->in_limit = header->value;
        return;
    default:
        REQUIRE(header->kind == WIRE_EXIT || header->kind == WIRE_RESET);
        account->is_open = false;
    }
}

static void check_sent(void)
{
    size_t length = queue_length(&session.to_send);
    while (scanned < length) {
        const uint8_t *frame = queue_head(&session.to_send) + scanned;
        struct wire_header header;
        REQUIRE(length - scanned >= WIRE_HEADER_BYTES && wire_decode(frame, &header));
        scanned += WIRE_HEADER_BYTES + header.length;
        REQUIRE(scanned <= length);
        check_frame(&header, frame + WIRE_HEADER_BYTES);
    }
}

/* --- the far end: what goes --- */

/* Whether the frame is allowed; if so the account knows of it. */
static bool is_allowed(const struct wire_header *header, struct account *account)
{
    bool is_inward = header->kind == WIRE_DATA || header->kind == WIRE_EOF;
    if (header->kind == WIRE_OPEN) {
        if (account->is_open || header->stream == 0 || header->stream == 0x8000)
            return false;
        *account = (struct account){.is_open = true,
                                    .in_limit = WIRE_WINDOW_BYTES,
                                    .granted = {WIRE_WINDOW_BYTES, WIRE_WINDOW_BYTES}};
        return true;
    }
    if ((is_inward && header->channel != WIRE_IN) ||
        (header->kind == WIRE_CREDIT && header->channel == WIRE_IN))
        return false;
    if (!account->is_open)
        return true;
    if (header->kind == WIRE_RESET)
        account->is_open = false;
    if (header->kind == WIRE_CREDIT) {
        uint64_t *granted = &account->granted[header->channel - WIRE_OUT];
        *granted = header->value > *granted ? header->value : *granted;
    }
    if (!is_inward)
        return true;
    if (account->in_ended || header->value != account->in_sent)
        return false;
    account->in_ended = header->kind == WIRE_EOF;
    account->in_sent += header->kind == WIRE_DATA ? header->length : 0;
    return account->in_sent <= account->in_limit;
}

static const char *payload_of(struct script *script, struct wire_header *header)
{
    static const char zero[WIRE_PAYLOAD_MAX];
    static const char *const opens[] = {"echo", "source", "brief", "brief\0why=", "none", ""};
    static const size_t lengths[] = {5, 7, 6, 11, 5, 0};
    size_t which = script_byte(script) % 6;
    if (header->kind == WIRE_OPEN) {
        header->length = (uint32_t)lengths[which];
        return opens[which];
    }
    header->length = which < 3 ? script_byte(script) : (uint32_t)script_number(script, 3) % 65537;
    return zero;
}

/* Send one frame; false when it was refused, and so the end. */
static bool send_frame(struct script *script)
{
    static const uint8_t kinds[] = {WIRE_OPEN, WIRE_DATA, WIRE_DATA, WIRE_EOF, WIRE_CREDIT,
                                    WIRE_CREDIT, WIRE_SIGNAL, WIRE_RESET};
    uint8_t choice = script_byte(script), how = script_byte(script);
    struct account *account = &accounts[choice % IDS];
    struct wire_header header = {.stream = ids[choice % IDS], .kind = kinds[how % 8]};
    const char *payload = payload_of(script, &header);
    bool is_inward = header.kind == WIRE_DATA || header.kind == WIRE_EOF;
    header.channel = is_inward ? WIRE_IN : 1 + (how >> 3) % 2;
    header.value = header.kind == WIRE_CREDIT
                       ? account->granted[header.channel - 1] + script_number(script, 2)
                       : account->in_sent;
    if (how >= 0xf0) { /* not by the book */
        header.channel = how % 3;
        header.value = script_number(script, 8);
    }
    bool was_allowed = is_allowed(&header, account);
    queue_frame(&session.received, &header, payload);
    const char *offence = session_handle(&session);
    REQUIRE((offence == NULL) == was_allowed);
    return !offence;
}

static void send_join(void)
{
    struct wire_header header = {.kind = WIRE_JOIN, .length = sizeof join};
    queue_append(&session.received, WIRE_MAGIC, WIRE_MAGIC_BYTES);
    queue_frame(&session.received, &header, join);
    joins_due++;
    REQUIRE(session_handle(&session) == NULL);
    check_sent();
    REQUIRE(joins_due == 0);
}

static void pump(void)
{
    struct poll_set set;
    session_watch(&session, &set);
    for (size_t i = 0; i < set.count; i++)
        set.entries[i].revents = set.entries[i].events;
    session_pump(&session, &set);
}

static void play(struct script *script)
{
    send_join();
    bool goes_on = true;
    while (goes_on && !script_is_over(script)) {
        uint8_t step = script_byte(script) % 16;
        if (step < 10)
            goes_on = send_frame(script);
        else if (step < 13)
            pump();
        else if (step == 13)
            send_join();
        else if (step == 14)
            session.is_quiet = true;
        if (goes_on)
            check_sent();
        if (step == 15) {
            queue_take(&session.to_send, queue_length(&session.to_send));
            scanned = 0;
        }
    }
}

/* Bytes as they are, in pieces: nothing is required but to survive. */
static void play_raw(struct script *script)
{
    if (script_byte(script) % 2)
        send_join();
    const char *offence = NULL;
    while (!offence && !script_is_over(script)) {
        const uint8_t *bytes;
        size_t count = script_bytes(script, 1u + script_byte(script), &bytes);
        queue_append(&session.received, bytes, count);
        offence = session_handle(&session);
        pump();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct script script = {bytes, bytes + count};
    if (zeros < 0)
        zeros = open("/dev/zero", O_RDONLY);
    memset(accounts, 0, sizeof accounts);
    scanned = joins_due = 0;
    session_start(&session, -1, -1);
    if (script_byte(&script) % 4)
        play(&script);
    else
        play_raw(&script);
    for (size_t i = 0; i < WIRE_STREAMS_MAX; i++)
        if (session.streams[i].id && session.streams[i].service->abandon)
            session.streams[i].service->abandon(&session.streams[i]);
    queue_free(&session.received);
    queue_free(&session.to_send);
    return 0;
}
