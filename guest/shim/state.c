#define _GNU_SOURCE
#include "state.h"

#include "bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define HEADER_BYTES 4096u
#define ENTRY_BYTES 64u
#define DETAIL_AT 24u
#define DETAIL_BYTES 2048u
#define ALLOCATED_ENTRIES 64u
#define NUMBERS_AT 2080u /* u32 next id of a transient stream, u32 zero, u64 system offset */
#define NUMBERS_BYTES 16u
#define HAS_ENDED_SHIFT 8 /* of the word with the patience: a bit for each channel */

#define MAGIC "MAGSSTA1"
#define MAGIC_BYTES 8u

static int file = -1;

static bool write_whole(const uint8_t *bytes, size_t count, off_t at)
{
    ssize_t written = pwrite(file, bytes, count, at);
    if (written >= 0 && (size_t)written < count)
        errno = ENOSPC;
    return written == (ssize_t)count;
}

bool state_open(struct failure *failure)
{
    static const uint8_t zeros[HEADER_BYTES + ENTRY_BYTES * (ALLOCATED_ENTRIES + 1)];
    file = open("state", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        return fail(failure, "cannot open the state file: %m");
    /* Not every filesystem can allocate; zeros are the same where nothing is shared. */
    errno = posix_fallocate(file, 0, sizeof zeros);
    if (errno && !write_whole(zeros, sizeof zeros, 0))
        return fail(failure, "cannot allocate the state file: %m");
    return write_whole((const uint8_t *)MAGIC, MAGIC_BYTES, 0) ||
           fail(failure, "cannot write the state file: %m");
}

bool state_save(const struct durable *durable)
{
    uint8_t entry[ENTRY_BYTES] = {0};
    put_u32(entry, durable->state);
    put_u32(entry + 4, durable->wait_status);
    put_u32(entry + 8, durable->has_timed_out);
    put_u32(entry + 12, (uint32_t)durable->patience |
                            (uint32_t)durable->channels[WIRE_OUT].has_ended << HAS_ENDED_SHIFT |
                            (uint32_t)durable->channels[WIRE_ERR].has_ended
                                << (HAS_ENDED_SHIFT + 1));
    put_u64(entry + 16, durable->opened_ns);
    put_u64(entry + 24, durable->ended_ns);
    put_u64(entry + 32, durable->channels[WIRE_OUT].offset);
    put_u64(entry + 40, durable->channels[WIRE_ERR].offset);
    put_u64(entry + 48, durable->left_ms);
    return write_whole(entry, sizeof entry, HEADER_BYTES + (off_t)ENTRY_BYTES * durable->id);
}

bool state_save_numbers(uint32_t next_id, uint64_t system_offset)
{
    uint8_t numbers[NUMBERS_BYTES] = {0};
    put_u32(numbers, next_id);
    put_u64(numbers + 8, system_offset);
    return write_whole(numbers, sizeof numbers, NUMBERS_AT);
}

static struct durable parse_entry(const uint8_t *entry, uint32_t id)
{
    uint32_t word = get_u32(entry + 12);
    struct durable durable = {
        .id = id,
        .state = (enum durable_state)get_u32(entry),
        .wait_status = get_u32(entry + 4),
        .has_timed_out = get_u32(entry + 8) != 0,
        .patience = (enum patience)(word & ((1u << HAS_ENDED_SHIFT) - 1)),
        .opened_ns = get_u64(entry + 16),
        .ended_ns = get_u64(entry + 24),
        .left_ms = get_u64(entry + 48),
    };
    for (int i = 0; i < 2; i++) {
        struct channel *channel = &durable.channels[WIRE_OUT + i];
        channel->offset = get_u64(entry + 32 + 8 * i);
        channel->has_ended = word >> (HAS_ENDED_SHIFT + i) & 1;
    }
    return durable;
}

static bool resume_streams(int fd, struct core *core)
{
    uint8_t entry[ENTRY_BYTES];
    for (uint32_t id = 1; id <= WIRE_DURABLE_ID_MAX; id++) {
        off_t at = HEADER_BYTES + (off_t)ENTRY_BYTES * id;
        if (pread(fd, entry, sizeof entry, at) != (ssize_t)sizeof entry)
            return true;
        struct durable durable = parse_entry(entry, id);
        if (!durable.state)
            continue;
        errno = EINVAL;
        if (durable.state > DURABLE_OVER || durable.patience > PATIENCE_KILLED ||
            !durable_resume(core, &durable) || !state_save(&durable))
            return false;
    }
    return true;
}

bool state_resume(int fd, struct core *core, struct failure *failure)
{
    uint8_t header[HEADER_BYTES];
    if (pread(fd, header, sizeof header, 0) != (ssize_t)sizeof header ||
        memcmp(header, MAGIC, MAGIC_BYTES) != 0 ||
        get_u32(header + NUMBERS_AT) < WIRE_TRANSIENT_ID_MIN)
        return fail(failure, "what is to be resumed is no state of a saved VM");
    core_resume(core, get_u32(header + NUMBERS_AT), get_u64(header + NUMBERS_AT + 8));
    return resume_streams(fd, core) || fail(failure, "its streams cannot be resumed: %m");
}

void state_end(enum end_reason reason, uint32_t engine_status, uint64_t at_ns, const char *detail)
{
    uint8_t header[HEADER_BYTES] = {0};
    memcpy(header, MAGIC, MAGIC_BYTES);
    put_u32(header + 8, reason);
    put_u32(header + 12, engine_status);
    put_u64(header + 16, at_ns);
    size_t length = strlen(detail);
    memcpy(header + DETAIL_AT, detail, length < DETAIL_BYTES ? length : DETAIL_BYTES - 1);
    write_whole(header, sizeof header, 0);
    fsync(file);
}
