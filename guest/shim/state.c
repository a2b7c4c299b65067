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
    put_u64(entry + 16, durable->opened_ns);
    put_u64(entry + 24, durable->ended_ns);
    put_u64(entry + 32, durable->channels[WIRE_OUT].offset);
    put_u64(entry + 40, durable->channels[WIRE_ERR].offset);
    return write_whole(entry, sizeof entry, HEADER_BYTES + (off_t)ENTRY_BYTES * durable->id);
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
