/* A regular file's content as a PAX archive has it: all of it, or what is no hole. */
#define _GNU_SOURCE
#include "content.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES WIRE_PAYLOAD_MAX
#define FORGET_BYTES (4u * 1024u * 1024u)
#define EXTENTS_MAX 65536u
#define HOLES_LEAST (64u * 1024u) /* fewer are sent as zeros */

void content_end(struct content *content)
{
    if (content->fd >= 0)
        close(content->fd);
    free(content->extents);
    *content = (struct content){.fd = -1};
}

static void add_extent(struct content *content, uint64_t start, uint64_t end)
{
    if (content->count % 64 == 0) {
        size_t bytes = (content->count + 64) * sizeof *content->extents;
        content->extents = realloc(content->extents, bytes);
        if (!content->extents)
            abort();
    }
    content->extents[content->count++] = (struct extent){start, end};
}

/* Find what is no hole. 0 or an errno. */
static int find_extents(struct content *content, uint64_t size)
{
    uint64_t at = 0;
    while (at < size) {
        off_t start = lseek(content->fd, (off_t)at, SEEK_DATA);
        if (start < 0 && errno == ENXIO)
            return 0;
        off_t end = start < 0 ? -1 : lseek(content->fd, start, SEEK_HOLE);
        if (end < 0)
            return errno;
        bool is_last = content->count + 1 == EXTENTS_MAX || (uint64_t)end > size;
        at = is_last ? size : (uint64_t)end;
        add_extent(content, (uint64_t)start, at);
    }
    return 0;
}

static uint64_t data_bytes(const struct content *content)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < content->count; i++)
        sum += content->extents[i].end - content->extents[i].start;
    return sum;
}

/* Write the map of a sparse file as GNU's format 1.0 has it, in front of its data. */
static void write_map(struct queue *map, const struct content *content, uint64_t size)
{
    char line[64];
    bool ends_in_hole = !content->count || content->extents[content->count - 1].end < size;
    int count = snprintf(line, sizeof line, "%zu\n", content->count + ends_in_hole);
    queue_append(map, line, (size_t)count);
    for (size_t i = 0; i < content->count; i++) {
        const struct extent *extent = &content->extents[i];
        count = snprintf(line, sizeof line, "%" PRIu64 "\n%" PRIu64 "\n", extent->start,
                         extent->end - extent->start);
        queue_append(map, line, (size_t)count);
    }
    count = snprintf(line, sizeof line, "%" PRIu64 "\n0\n", size);
    if (ends_in_hole)
        queue_append(map, line, (size_t)count);
    pax_pad(map, queue_length(map));
}

int content_begin(struct content *content, struct queue *out, struct pax_entry *entry,
                  struct queue *records, int fd)
{
    uint64_t size = entry->size;
    *content = (struct content){.fd = fd};
    int error = find_extents(content, size);
    if (error)
        return error;
    struct queue map = {0};
    if (size - data_bytes(content) >= HOLES_LEAST) {
        write_map(&map, content, size);
        entry->size = queue_length(&map) + data_bytes(content);
        entry->real_path = entry->path;
        pax_record_text(records, "GNU.sparse.major", "1");
        pax_record_text(records, "GNU.sparse.minor", "0");
        pax_record_number(records, "GNU.sparse.realsize", size);
    } else {
        content->count = 0;
        if (size)
            add_extent(content, 0, size);
    }
    pax_entry(out, entry, records);
    queue_append(out, queue_head(&map), queue_length(&map));
    queue_free(&map);
    return 0;
}

int content_read(struct content *content, struct queue *out)
{
    if (content->next == content->count) {
        pax_pad(out, content->sent);
        content_end(content);
        return 0;
    }
    const struct extent *extent = &content->extents[content->next];
    if (content->at < extent->start)
        content->at = extent->start;
    uint64_t left = extent->end - content->at;
    size_t count = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
    ssize_t got = pread(content->fd, queue_reserve(out, count), count, (off_t)content->at);
    if (got <= 0)
        return got < 0 ? errno : EIO; /* it has become shorter */
    queue_commit(out, (size_t)got);
    content->at += (uint64_t)got;
    content->sent += (uint64_t)got;
    if (content->at == extent->end)
        content->next++;
    /* It is read once: kept, it would fill the machine's memory. */
    if (content->at - content->forgotten >= FORGET_BYTES) {
        posix_fadvise(content->fd, 0, (off_t)content->at, POSIX_FADV_DONTNEED);
        content->forgotten = content->at;
    }
    return 0;
}
