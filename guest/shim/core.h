/* What the shim does with frames, without any I/O: streams of several
 * connections over one agent link, durable streams, verbs, credit, deadlines.
 * Reading and writing sockets is loop.c's business; files, freezer, engine and
 * clock are reached through `struct host`.
 *
 * To drive it (loop.c does, and so can a fuzzer that links core.c, agent.c,
 * connection.c, durable.c, verbs.c, freeze.c, quiet.c, bucket.c and ../wire/wire.c):
 *
 *   core_init(&core, &host, vm, epoch, nonce);
 *   durable_limit(&core, rate, burst);       or nothing: no limit
 *   first = core_connect(&core, true);       the control connection
 *   core.now_ms = ...;                       before every call below
 *   core_feed_connection(&core, first, bytes, count);   e.g. REQUEST `start`
 *   core_feed_agent(&core, bytes, count);    e.g. JOIN with the nonce
 *   core_tick(&core);                        deadlines; returns the next one
 *   core_publish(&core);                     news that was held back, limits
 *
 * What it says is in `core.to_agent` (queue_take what was sent) and in
 * `connection->out` (core_sent what was sent). A connection that `is_broken` is
 * to be given to core_disconnect. When `core.end` is set the VM is over: nothing
 * more may be fed. core_free releases memory, so that a core can begin anew.
 */
#ifndef MAGS_SHIM_CORE_H
#define MAGS_SHIM_CORE_H

#include "../wire/wire.h"
#include "bucket.h"

#include <stdarg.h>

#define CONNECTIONS_MAX 64
#define NONCE_DIGITS 32
#define AGENT_QUEUE_MAX (4u << 20)      /* above it nothing more goes to the agent */
#define CONNECTION_QUEUE_MAX (8u << 20) /* above it this connection is not read */
/* Of all together; the longest one goes. One window of every stream is less. */
#define CONNECTIONS_QUEUE_MAX (80u << 20)
#define LOG_BURST_MIN (64u << 10)
#define NEVER UINT64_MAX

/* The numbers are those of the state file. */
enum end_reason {
    END_NONE = 0,
    END_KILLED = 1,
    END_OUT_OF_MEMORY = 2,
    END_TOO_MANY_PROCESSES = 3,
    END_ENGINE_DIED = 4,
    END_AGENT_DIED = 5,
    END_FENCED = 6,
    END_HOST_DISK_FULL = 7,
};

enum record_kind { RECORD_DATA = 1, RECORD_GAP = 2, RECORD_EXIT = 3 };
#define CHANNEL_SYSTEM 3 /* of the journal only */

/* One record of the journal; the payload has no limit of its own. */
struct record {
    uint8_t channel;
    uint8_t kind;
    uint16_t stream;
    uint64_t offset; /* of its first byte in its channel */
    const void *payload;
    size_t length;
};

/* One direction of a stream: `offset` is where the next byte goes, `credit` how
 * far the reader has said it may. */
struct channel {
    uint64_t offset, credit;
    bool has_ended;
};

/* A stream that belongs to one connection. */
struct transient {
    uint32_t id;     /* on the agent's link; 0: this slot is free */
    uint32_t far_id; /* on its connection */
    struct connection *owner;
    struct channel channels[3];
};

enum durable_state { DURABLE_RUNNING = 1, DURABLE_OVER = 2 };

/* How far the deadline of a durable stream has been enforced. */
enum patience { PATIENCE_WHOLE, PATIENCE_TERMINATED, PATIENCE_KILLED };

/* A stream that belongs to the VM: its output is in the journal. */
struct durable {
    uint32_t id;
    enum durable_state state;
    uint32_t wait_status;
    bool has_timed_out;
    enum patience patience;
    uint64_t opened_ns, ended_ns; /* wall clock */
    uint64_t next_ms;             /* monotonic: when patience wears thinner */
    uint64_t left_ms;             /* until then, when the VM was saved */
    struct channel channels[3];   /* index: enum wire_channel; none for WIRE_IN */
    bool is_held[3];              /* its credit is withheld, for the log's rate */
    bool is_excused[3];           /* of that, once: it was sent a signal */
};

struct connection {
    bool is_open;
    bool is_first;  /* the control connection: may `start` */
    bool has_hello; /* is told about durable streams */
    bool is_scoped;
    bool is_broken; /* offended, or never reads: to be disconnected */
    bool is_stalled; /* its next frame waits for room in to_agent */
    struct queue in, out;
    uint64_t sent_bytes;     /* taken from `out` since it began */
    uint64_t journal_told;   /* the journal's end that was last queued */
    uint64_t journal_sent_at; /* sent_bytes at which that has left */
};

enum join_state { JOIN_NONE, JOIN_ASKED, JOINED };

/* A request whose answer comes later; connection NULL: none. */
struct pending {
    struct connection *connection;
    uint64_t id;
};

struct freeze {
    bool is_on;
    struct connection *owner;
    uint64_t deadline_ms;  /* monotonic; NEVER: only its owner's end undoes it */
    struct pending asked;  /* while tasks are still being stopped */
    uint64_t give_up_ms;
};

/* See quiet.c. `joins`: of an agent that was told to go on, so many answers are to come. */
struct quiet {
    bool is_on;
    struct connection *owner;
    struct pending asked; /* until the agent is quiet */
    uint32_t stream;      /* by which it was asked to be */
    unsigned joins;
    bool is_waiting; /* the VM goes on from a saved one, and its old streams are still held */
    uint32_t orphans[WIRE_STREAMS_MAX]; /* transient streams that have nobody, to be reset */
    unsigned orphan_count;
};

/* What the core needs of the world. All return false on failure with errno set. */
struct host {
    uint64_t (*wall_ns)(void);
    bool (*journal_append)(const struct record *record);
    uint64_t (*journal_end)(void);
    bool (*save_durable)(const struct durable *durable);
    bool (*save_numbers)(uint32_t next_id, uint64_t system_offset);
    bool (*start_engine)(char *error, size_t size); /* with a sentence in `error` */
    void (*run_engine)(void); /* have a machine that was stopped run, if it can be told so */
    bool (*has_freezer)(void);
    bool (*freezer_write)(bool is_frozen);
    bool (*freezer_is_done)(void); /* all tasks have stopped */
    void (*raise_weight)(void); /* the VM is somebody's now; done as far as it can be */
    bool (*set_fence)(uint64_t after_ms); /* 0: never */
    bool (*is_out_of_memory)(void); /* the kernel has killed a process of the VM for it */
};

struct core {
    const struct host *host;
    const char *vm, *epoch, *nonce;
    uint64_t now_ms; /* monotonic, set by the driver */

    enum join_state join;
    char agent_version[32];
    bool has_started;
    struct pending start;

    struct queue from_agent, to_agent;
    struct connection connections[CONNECTIONS_MAX];
    struct transient transients[WIRE_STREAMS_MAX];
    uint32_t next_id;                                 /* of a transient stream */
    struct durable *durables[WIRE_DURABLE_ID_MAX + 1]; /* by id */
    struct durable *running[WIRE_STREAMS_MAX];
    unsigned running_count;
    uint64_t system_offset;
    struct bucket log; /* for what all durable streams print */
    struct freeze freeze;
    struct quiet quiet;
    struct connection *holder; /* its end is the VM's, until it claims it; NULL: none */

    enum end_reason end;
    char end_detail[2048];
};

/* --- core.c: life and common parts --- */

/* `vm`, `epoch` and `nonce` (hex) must outlive the core. */
void core_init(struct core *core, const struct host *host, const char *vm, const char *epoch,
               const char *nonce);
void core_free(struct core *core);

/* Run what is due at core->now_ms; returns when to call again (ms) or NEVER. */
uint64_t core_tick(struct core *core);

/* Queue news of the journal for connections that have had the last one, take up
 * those that waited for the agent, and break the longest connection while all
 * together hold too much. */
void core_publish(struct core *core);

/* Say that the VM is over; the first to say so wins. */
__attribute__((format(printf, 3, 4)))
void core_end(struct core *core, enum end_reason reason, const char *format, ...);
void core_end_disk(struct core *core, const char *what); /* HOST_DISK_FULL with errno */

/* Append one field, `format` printed, to a payload under construction. */
__attribute__((format(printf, 2, 3)))
void field_append(struct queue *fields, const char *format, ...);

/* How many streams of both sorts are open in the VM. */
unsigned core_open_streams(const struct core *core);
void core_send_agent(struct core *core, uint8_t kind, uint32_t stream, uint8_t channel,
                     uint64_t value);

/* Go on where another shim left off: nothing was fed yet. `next_id`, `system_offset`: as it
 * had them; its durable streams come by durable_resume. */
void core_resume(struct core *core, uint32_t next_id, uint64_t system_offset);

/* --- agent.c --- */
void core_feed_agent(struct core *core, const void *bytes, size_t count);

/* Handle the whole frames in core->from_agent. */
void core_take_agent(struct core *core);

/* Ask the agent to join; to do so again. */
void core_ask_join(struct core *core);
void core_send_join(struct core *core);

/* --- connection.c --- */

/* NULL when there are too many. */
struct connection *core_connect(struct core *core, bool is_first);
void core_feed_connection(struct core *core, struct connection *connection, const void *bytes,
                          size_t count);
void core_take_connection(struct core *core, struct connection *connection);
void core_disconnect(struct core *core, struct connection *connection);
bool core_may_read(const struct connection *connection);
void core_sent(struct connection *connection, size_t count);

void connection_frame(struct connection *connection, const struct wire_header *header,
                      const void *payload);

/* A RESET with a reason, for a stream that cannot be. */
void connection_refuse(struct connection *connection, uint32_t stream, const char *error);
void connection_tell_journal(struct core *core, struct connection *connection);

/* --- durable.c --- */

/* Bound what durable streams print together: `rate` bytes a second, and `burst` more, at
 * least LOG_BURST_MIN; both at most BUCKET_MAX. Nothing may have been opened yet. */
void durable_limit(struct core *core, uint64_t rate, uint64_t burst);
void durable_open(struct core *core, struct connection *connection,
                  const struct wire_header *header, const uint8_t *payload);

/* Add a stream of a shim before this one. False when it cannot be. */
bool durable_resume(struct core *core, const struct durable *saved);

/* Grant what was held back, as far as the log's rate allows. */
void durable_grant_held(struct core *core);
void durable_signal(struct core *core, const struct wire_header *header);
void durable_from_agent(struct core *core, const struct wire_header *header,
                        const uint8_t *payload);
uint64_t durable_tick(struct core *core);

/* Queue the EXIT of a stream that is over. */
void durable_tell_exit(struct connection *connection, const struct durable *durable);
void durable_save_running(struct core *core);
bool journal_note(struct core *core, const char *text);

/* --- verbs.c --- */
void verb_request(struct core *core, struct connection *connection, uint64_t id,
                  const uint8_t *payload, size_t length);
void reply_ok(struct connection *connection, uint64_t id);
__attribute__((format(printf, 3, 4)))
void reply_error(struct connection *connection, uint64_t id, const char *format, ...);

/* --- quiet.c --- */
void quiet_ask(struct core *core, struct connection *connection, uint64_t id);
void quiet_undo(struct core *core);
void quiet_owner_gone(struct core *core, const struct connection *connection);

/* Reset, when the VM goes on, a stream whose connection has ended. */
void quiet_adopt(struct core *core, uint32_t stream);

/* Let the VM go on: NULL, or why it cannot. */
const char *quiet_proceed(struct core *core, const struct connection *connection);

/* Whether a frame was the agent's answer to us, and not to a connection. */
bool quiet_answered(struct core *core, const struct wire_header *header);

/* Take what a JOIN says of open streams: NULL, or the offence. */
const char *quiet_joined(struct core *core, const uint8_t *payload, size_t length);

/* --- freeze.c --- */
void freeze_ask(struct core *core, struct connection *connection, uint64_t id, uint64_t after_ms);
bool freeze_undo(struct core *core);
void freeze_owner_gone(struct core *core, const struct connection *connection);
uint64_t freeze_tick(struct core *core);

#endif
