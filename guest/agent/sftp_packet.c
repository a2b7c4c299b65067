#define _GNU_SOURCE
#include "sftp_packet.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define HALF_A_YEAR_S (365 * 12 * 60 * 60)
#define HAS_EXTENDED 0x80000000u

uint32_t take_32(struct cursor *cursor)
{
    if (cursor->end - cursor->at < 4) {
        cursor->is_bad = true;
        cursor->at = cursor->end;
        return 0;
    }
    const uint8_t *at = cursor->at;
    cursor->at += 4;
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

uint64_t take_64(struct cursor *cursor)
{
    uint64_t high = take_32(cursor);
    return high << 32 | take_32(cursor);
}

const uint8_t *take_bytes(struct cursor *cursor, size_t *count)
{
    *count = take_32(cursor);
    if (*count > (size_t)(cursor->end - cursor->at)) {
        cursor->is_bad = true;
        cursor->at = cursor->end;
        *count = 0;
    }
    const uint8_t *bytes = cursor->at;
    cursor->at += *count;
    return bytes;
}

void take_text(struct cursor *cursor, char text[PATH_MAX])
{
    size_t count;
    const uint8_t *bytes = take_bytes(cursor, &count);
    if (count >= PATH_MAX || (count && memchr(bytes, 0, count))) {
        cursor->is_bad = true;
        count = 0;
    }
    if (count)
        memcpy(text, bytes, count);
    text[count] = 0;
}

void take_wanted(struct cursor *cursor, struct wanted *wanted)
{
    *wanted = (struct wanted){.flags = take_32(cursor)};
    if (wanted->flags & HAS_SIZE)
        wanted->size = take_64(cursor);
    if (wanted->flags & HAS_OWNER) {
        wanted->uid = take_32(cursor);
        wanted->gid = take_32(cursor);
    }
    if (wanted->flags & HAS_MODE)
        wanted->mode = take_32(cursor);
    if (wanted->flags & HAS_TIMES) {
        wanted->accessed = take_32(cursor);
        wanted->modified = take_32(cursor);
    }
    size_t ignored;
    for (uint32_t left = wanted->flags & HAS_EXTENDED ? take_32(cursor) : 0;
         left && !cursor->is_bad; left--) {
        take_bytes(cursor, &ignored);
        take_bytes(cursor, &ignored);
    }
}

void put_8(struct queue *out, uint8_t value) { queue_append(out, &value, 1); }

void put_32(struct queue *out, uint32_t value)
{
    for (int shift = 24; shift >= 0; shift -= 8)
        put_8(out, (uint8_t)(value >> shift));
}

void put_64(struct queue *out, uint64_t value)
{
    put_32(out, (uint32_t)(value >> 32));
    put_32(out, (uint32_t)value);
}

void put_bytes(struct queue *out, const void *bytes, size_t count)
{
    put_32(out, (uint32_t)count);
    queue_append(out, bytes, count);
}

void put_text(struct queue *out, const char *text) { put_bytes(out, text, strlen(text)); }

void put_attributes(struct queue *out, const struct stat *status)
{
    put_32(out, HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES);
    put_64(out, (uint64_t)status->st_size);
    put_32(out, status->st_uid);
    put_32(out, status->st_gid);
    put_32(out, status->st_mode);
    put_32(out, (uint32_t)status->st_atime);
    put_32(out, (uint32_t)status->st_mtime);
}

size_t packet_begin(struct queue *out, enum sftp_type type, uint32_t id)
{
    size_t before = queue_length(out);
    put_32(out, 0);
    put_8(out, (uint8_t)type);
    put_32(out, id);
    return before;
}

void packet_end(struct queue *out, size_t before)
{
    uint32_t length = (uint32_t)(queue_length(out) - before - 4);
    uint8_t *at = out->bytes + out->head + before;
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(length >> (24 - 8 * i));
}

void answer_status(struct queue *out, uint32_t id, enum sftp_status status, const char *text)
{
    size_t packet = packet_begin(out, SFTP_STATUS, id);
    put_32(out, status);
    put_text(out, text);
    put_text(out, "en");
    packet_end(out, packet);
}

void answer_error(struct queue *out, uint32_t id, int error)
{
    switch (error) {
    case 0:
        answer_status(out, id, SFTP_OK, "Success");
        break;
    case SFTP_END:
        answer_status(out, id, SFTP_EOF, "End of file");
        break;
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
        answer_status(out, id, SFTP_NO_SUCH_FILE, strerror(error));
        break;
    case EPERM:
    case EACCES:
        answer_status(out, id, SFTP_PERMISSION_DENIED, strerror(error));
        break;
    case ENOSYS:
        answer_status(out, id, SFTP_OP_UNSUPPORTED, "Operation unsupported");
        break;
    case EBADMSG:
        answer_status(out, id, SFTP_BAD_MESSAGE, "Bad message");
        break;
    default:
        answer_status(out, id, SFTP_FAILURE, strerror(error));
    }
}

/* Names are looked up once in a row: the files of a directory have one owner, mostly. */
static const char *owner_name(uid_t uid)
{
    static char name[32];
    static uid_t last = (uid_t)-1;
    if (uid != last || !*name) {
        const struct passwd *entry = getpwuid(uid);
        if (entry)
            snprintf(name, sizeof name, "%.31s", entry->pw_name);
        else
            snprintf(name, sizeof name, "%u", uid);
        last = uid;
    }
    return name;
}

static const char *group_name(gid_t gid)
{
    static char name[32];
    static gid_t last = (gid_t)-1;
    if (gid != last || !*name) {
        const struct group *entry = getgrgid(gid);
        if (entry)
            snprintf(name, sizeof name, "%.31s", entry->gr_name);
        else
            snprintf(name, sizeof name, "%u", gid);
        last = gid;
    }
    return name;
}

static void write_mode(mode_t mode, char text[11])
{
    static const struct {
        mode_t kind;
        char letter;
    } kinds[] = {{S_IFDIR, 'd'}, {S_IFLNK, 'l'}, {S_IFCHR, 'c'},
                 {S_IFBLK, 'b'}, {S_IFIFO, 'p'}, {S_IFSOCK, 's'}};
    strcpy(text, "-rwxrwxrwx");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((mode & S_IFMT) == kinds[i].kind)
            text[0] = kinds[i].letter;
    for (int i = 0; i < 9; i++)
        if (!(mode & (0400u >> i)))
            text[1 + i] = '-';
    if (mode & S_ISUID)
        text[3] = text[3] == 'x' ? 's' : 'S';
    if (mode & S_ISGID)
        text[6] = text[6] == 'x' ? 's' : 'S';
    if (mode & S_ISVTX)
        text[9] = text[9] == 'x' ? 't' : 'T';
}

void put_entry(struct queue *out, const char *name, const struct stat *status)
{
    char mode[11], when[32] = "", line[PATH_MAX + 256];
    time_t now = time(NULL);
    struct tm local;
    write_mode(status->st_mode, mode);
    bool is_recent = status->st_mtime > now - HALF_A_YEAR_S && status->st_mtime <= now;
    if (localtime_r(&status->st_mtime, &local))
        strftime(when, sizeof when, is_recent ? "%b %e %H:%M" : "%b %e  %Y", &local);
    snprintf(line, sizeof line, "%s %3lu %-8s %-8s %8lld %s %s", mode,
             (unsigned long)status->st_nlink, owner_name(status->st_uid),
             group_name(status->st_gid), (long long)status->st_size, when, name);
    put_text(out, name);
    put_text(out, line);
    put_attributes(out, status);
}
