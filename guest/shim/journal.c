#define _GNU_SOURCE
#include "journal.h"

#include "bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SEGMENT_BYTES (1u << 20)
#define SEGMENT_HEADER_BYTES 16u
#define RECORD_HEADER_BYTES 24u
#define FILES 17u
#define PIECE_MIN 1024u /* less room than this at a segment's end is left unused */

#define MAGIC "MAGSJRN1"
#define MAGIC_BYTES 8u

static int files[FILES];
static uint64_t number;   /* of the segment being written */
static uint32_t position; /* in it */

static unsigned file_of(uint64_t segment)
{
    return segment ? 1 + (unsigned)((segment - 1) % (FILES - 1)) : 0;
}

static bool write_at(int fd, struct iovec *parts, int count, off_t at)
{
    while (count) {
        ssize_t written = pwritev(fd, parts, count, at);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            if (!written)
                errno = ENOSPC;
            return false;
        }
        at += written;
        while (count && (size_t)written >= parts->iov_len) {
            written -= (ssize_t)parts->iov_len;
            parts++;
            count--;
        }
        if (count) {
            parts->iov_base = (uint8_t *)parts->iov_base + written;
            parts->iov_len -= (size_t)written;
        }
    }
    return true;
}

static bool begin_segment(uint64_t segment)
{
    uint8_t header[SEGMENT_HEADER_BYTES];
    memcpy(header, MAGIC, MAGIC_BYTES);
    put_u64(header + 8, segment);
    struct iovec part = {header, sizeof header};
    int fd = files[file_of(segment)];
    if (ftruncate(fd, 0) < 0 || !write_at(fd, &part, 1, 0))
        return false;
    number = segment;
    position = SEGMENT_HEADER_BYTES;
    return true;
}

/* The end of the last whole record of the segment at hand. */
static uint32_t find_end(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return SEGMENT_HEADER_BYTES;
    uint64_t size = status.st_size < (off_t)SEGMENT_BYTES ? (uint64_t)status.st_size
                                                          : SEGMENT_BYTES;
    uint64_t end = SEGMENT_HEADER_BYTES;
    uint8_t header[RECORD_HEADER_BYTES];
    while (end + RECORD_HEADER_BYTES <= size &&
           pread(fd, header, sizeof header, (off_t)end) == (ssize_t)sizeof header) {
        uint64_t next = end + RECORD_HEADER_BYTES + get_u32(header);
        if (next > size)
            break;
        end = next;
    }
    return (uint32_t)end;
}

/* Find the newest segment; false when there is none. */
static bool find_newest(void)
{
    bool is_found = false;
    for (unsigned i = 0; i < FILES; i++) {
        uint8_t header[SEGMENT_HEADER_BYTES];
        if (pread(files[i], header, sizeof header, 0) != (ssize_t)sizeof header ||
            memcmp(header, MAGIC, MAGIC_BYTES) != 0)
            continue;
        uint64_t segment = get_u64(header + 8);
        if (file_of(segment) != i || (is_found && segment < number))
            continue;
        number = segment;
        is_found = true;
    }
    return is_found;
}

bool journal_open(struct failure *failure)
{
    for (unsigned i = 0; i < FILES; i++) {
        char name[32] = "journal.head";
        if (i)
            snprintf(name, sizeof name, "journal.%u", i - 1);
        files[i] = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (files[i] < 0)
            return fail(failure, "cannot open %s: %m", name);
    }
    if (!find_newest())
        return begin_segment(0) || fail(failure, "cannot begin the journal: %m");
    int fd = files[file_of(number)];
    position = find_end(fd);
    return ftruncate(fd, position) == 0 || fail(failure, "cannot cut the journal: %m");
}

static uint64_t wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool append_piece(const struct record *record, size_t from, uint32_t length)
{
    uint8_t header[RECORD_HEADER_BYTES];
    put_u32(header, length);
    header[4] = record->channel;
    header[5] = record->kind;
    header[6] = (uint8_t)record->stream;
    header[7] = (uint8_t)(record->stream >> 8);
    put_u64(header + 8, record->offset + from);
    put_u64(header + 16, wall_ns());
    struct iovec parts[] = {{header, sizeof header},
                            {(uint8_t *)(uintptr_t)record->payload + from, length}};
    if (!write_at(files[file_of(number)], parts, length ? 2 : 1, position))
        return false;
    position += RECORD_HEADER_BYTES + length;
    return true;
}

bool journal_append(const struct record *record)
{
    size_t done = 0;
    do {
        size_t rest = record->length - done;
        size_t least = RECORD_HEADER_BYTES + (rest < PIECE_MIN ? rest : PIECE_MIN);
        if (SEGMENT_BYTES - position < least && !begin_segment(number + 1))
            return false;
        size_t room = SEGMENT_BYTES - position - RECORD_HEADER_BYTES;
        size_t piece = rest < room ? rest : room;
        if (!append_piece(record, done, (uint32_t)piece))
            return false;
        done += piece;
    } while (done < record->length);
    return true;
}

uint64_t journal_end(void) { return number * SEGMENT_BYTES + position; }
