#include "pax.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OCTAL_8_MAX 07777777u        /* what eight bytes hold with their NUL */
#define OCTAL_12_MAX 077777777777ull /* what twelve hold */

/* POSIX `ustar`. */
struct header {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type;
    char target[100], magic[8], owner[32], group[32], major[8], minor[8], prefix[155], rest[12];
};

_Static_assert(sizeof(struct header) == PAX_BLOCK_BYTES, "a header is one block");

void pax_record(struct queue *records, const char *key, const void *value, size_t length)
{
    /* The length at a record's beginning counts its own digits too. */
    size_t rest = strlen(key) + length + 3, whole = rest + 1;
    while (whole != rest + (size_t)snprintf(NULL, 0, "%zu", whole))
        whole = rest + (size_t)snprintf(NULL, 0, "%zu", whole);
    char digits[24];
    queue_append(records, digits, (size_t)snprintf(digits, sizeof digits, "%zu ", whole));
    queue_append(records, key, strlen(key));
    queue_append(records, "=", 1);
    queue_append(records, value, length);
    queue_append(records, "\n", 1);
}

void pax_record_text(struct queue *records, const char *key, const char *text)
{
    pax_record(records, key, text, strlen(text));
}

void pax_record_number(struct queue *records, const char *key, uint64_t number)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, number);
    pax_record_text(records, key, text);
}

/* Write a number, or 0 and a record where it is too large. */
static void put_number(char *field, size_t size, uint64_t number, const char *key,
                       struct queue *records)
{
    uint64_t most = size == 8 ? OCTAL_8_MAX : OCTAL_12_MAX;
    if (number > most) {
        pax_record_number(records, key, number);
        number = 0;
    }
    char text[32];
    snprintf(text, sizeof text, "%0*" PRIo64, (int)size - 1, number);
    memcpy(field, text, size);
}

/* Write a text that ends with the field or before, and a record where it is longer. */
static void put_text(char field[100], const char *text, const char *key, struct queue *records)
{
    size_t length = strlen(text);
    if (length > 100 && key)
        pax_record(records, key, text, length);
    memcpy(field, text, length < 100 ? length : 100);
}

static void put_header(struct queue *out, struct header *header)
{
    memcpy(header->magic, "ustar\00000", 8);
    memcpy(header->major, "0000000", 8);
    memcpy(header->minor, "0000000", 8);
    memset(header->checksum, ' ', sizeof header->checksum);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof *header; i++)
        sum += ((const uint8_t *)header)[i];
    snprintf(header->checksum, sizeof header->checksum, "%06o", sum);
    queue_append(out, header, sizeof *header);
}

static void put_records(struct queue *out, struct queue *records)
{
    struct queue none = {0};
    struct header header = {.type = 'x', .name = "pax"};
    size_t length = queue_length(records);
    put_number(header.mode, 8, 0600, "", &none);
    put_number(header.uid, 8, 0, "", &none);
    put_number(header.gid, 8, 0, "", &none);
    put_number(header.size, 12, length, "", &none);
    put_number(header.mtime, 12, 0, "", &none);
    put_header(out, &header);
    queue_append(out, queue_head(records), length);
    pax_pad(out, length);
    queue_take(records, length);
}

void pax_entry(struct queue *out, const struct pax_entry *entry, struct queue *records)
{
    struct header header = {.type = (char)entry->type};
    put_text(header.name, entry->path, entry->real_path ? NULL : "path", records);
    if (entry->real_path)
        pax_record_text(records, "GNU.sparse.name", entry->real_path);
    if (entry->target)
        put_text(header.target, entry->target, "linkpath", records);
    put_number(header.mode, 8, entry->mode & 07777, "", records);
    put_number(header.uid, 8, entry->uid, "uid", records);
    put_number(header.gid, 8, entry->gid, "gid", records);
    put_number(header.size, 12, entry->size, "size", records);
    if (entry->mtime_s < 0) {
        char text[24];
        snprintf(text, sizeof text, "%" PRId64, entry->mtime_s);
        pax_record_text(records, "mtime", text);
    }
    put_number(header.mtime, 12, entry->mtime_s < 0 ? 0 : (uint64_t)entry->mtime_s, "mtime",
               records);
    if (queue_length(records))
        put_records(out, records);
    put_header(out, &header);
}

void pax_pad(struct queue *out, uint64_t count)
{
    static const uint8_t zeros[PAX_BLOCK_BYTES];
    if (count % PAX_BLOCK_BYTES)
        queue_append(out, zeros, PAX_BLOCK_BYTES - (size_t)(count % PAX_BLOCK_BYTES));
}

void pax_end(struct queue *out)
{
    static const uint8_t zeros[2 * PAX_BLOCK_BYTES];
    queue_append(out, zeros, sizeof zeros);
}
