/* Writing a PAX archive (POSIX.1-2001 `pax`), entry by entry, into a queue. Knows no
 * file: what an entry says is the caller's. */
#ifndef MAGS_PAX_H
#define MAGS_PAX_H

#include <sys/types.h>

#include "../wire/wire.h"

#define PAX_BLOCK_BYTES 512u

enum pax_type {
    PAX_REGULAR = '0',
    PAX_HARD_LINK = '1',
    PAX_SYMLINK = '2',
    PAX_CHARACTER_DEVICE = '3', /* always 0:0 */
    PAX_DIRECTORY = '5',
    PAX_FIFO = '6',
};

struct pax_entry {
    enum pax_type type;
    const char *path;
    const char *target; /* of a link; else NULL */
    const char *real_path; /* of a sparse file, which `records` name otherwise; else NULL */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    int64_t mtime_s;
    uint64_t size; /* of what follows the entry */
};

/* Add `key=value` to the records of the entry to come. Values may hold any bytes. */
void pax_record(struct queue *records, const char *key, const void *value, size_t length);
void pax_record_text(struct queue *records, const char *key, const char *text);
void pax_record_number(struct queue *records, const char *key, uint64_t number);

/* Append an entry with `records` and those that it needs besides, and empty them. */
void pax_entry(struct queue *out, const struct pax_entry *entry, struct queue *records);

/* Fill up the last block of `count` bytes. */
void pax_pad(struct queue *out, uint64_t count);

/* Append the end of the archive. */
void pax_end(struct queue *out);

#endif
