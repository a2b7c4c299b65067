/* The content of one regular file, on its way into an archive. */
#ifndef MAGS_CONTENT_H
#define MAGS_CONTENT_H

#include "../wire/wire.h"
#include "pax.h"

struct extent {
    uint64_t start, end;
};

struct content {
    int fd; /* -1: none */
    struct extent *extents;
    size_t count, next;
    uint64_t at;   /* in the file */
    uint64_t sent; /* in the archive */
    uint64_t forgotten;
};

/* Append the entry of a regular file, with `records` before it, and begin with its content.
 * Takes `fd` over. 0 or an errno. */
int content_begin(struct content *content, struct queue *out, struct pax_entry *entry,
                  struct queue *records, int fd);

/* Append a piece; without any left it ends. 0 or an errno. */
int content_read(struct content *content, struct queue *out);

/* Let go of the file, if there is one. */
void content_end(struct content *content);

#endif
