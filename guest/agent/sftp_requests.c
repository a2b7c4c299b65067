/* What SFTP clients ask for, one function for each: 0 when it has answered, else an errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sftp_packet.h"

#define VERSION 3
#define ENTRIES_MAX 100u /* in one answer */
#define REFUSED EBADMSG

/* A number as a string of eight hex digits: what does not look so was given out by nobody. */
static uint32_t take_handle(struct request *request)
{
    char text[PATH_MAX], *end;
    take_text(&request->in, text);
    unsigned long handle = strtoul(text, &end, 16);
    return strlen(text) == 8 && !*end ? (uint32_t)handle : UINT32_MAX;
}

static int answer_handle(struct request *request, uint32_t handle)
{
    char text[9];
    snprintf(text, sizeof text, "%08x", handle);
    size_t packet = packet_begin(request->out, SFTP_HANDLE, request->id);
    put_text(request->out, text);
    packet_end(request->out, packet);
    return 0;
}

static int answer_attributes(struct request *request, int error, const struct stat *status)
{
    if (error)
        return error;
    size_t packet = packet_begin(request->out, SFTP_ATTRS, request->id);
    put_attributes(request->out, status);
    packet_end(request->out, packet);
    return 0;
}

/* A path alone, as the answer to a question for one. */
static int answer_name(struct request *request, const char *name)
{
    const struct stat nothing = {0};
    size_t packet = packet_begin(request->out, SFTP_NAME, request->id);
    put_32(request->out, 1);
    put_text(request->out, name);
    put_text(request->out, name);
    put_attributes(request->out, &nothing);
    packet_end(request->out, packet);
    return 0;
}

static int done(struct request *request, int error)
{
    if (!error)
        answer_error(request->out, request->id, 0);
    return error;
}

/* --- open files --- */

static int on_open(struct request *request)
{
    char path[PATH_MAX];
    struct wanted wanted;
    uint32_t handle;
    take_text(&request->in, path);
    uint32_t how = take_32(&request->in);
    take_wanted(&request->in, &wanted);
    int error = request->in.is_bad ? REFUSED : files_open(path, how, &wanted, &handle);
    return error ? error : answer_handle(request, handle);
}

static int on_open_directory(struct request *request)
{
    char path[PATH_MAX];
    uint32_t handle;
    take_text(&request->in, path);
    int error = request->in.is_bad ? REFUSED : files_open_directory(path, &handle);
    return error ? error : answer_handle(request, handle);
}

static int on_close(struct request *request)
{
    uint32_t handle = take_handle(request);
    return request->in.is_bad ? REFUSED : done(request, files_close(handle));
}

static int on_read(struct request *request)
{
    struct queue *out = request->out;
    uint32_t handle = take_handle(request);
    uint64_t offset = take_64(&request->in);
    size_t count = take_32(&request->in);
    if (request->in.is_bad)
        return REFUSED;
    count = count < SFTP_DATA_MAX ? count : SFTP_DATA_MAX;
    size_t before = queue_length(out), packet = packet_begin(out, SFTP_DATA, request->id);
    put_32(out, 0);
    size_t length_at = queue_length(out) - 4, asked = count;
    int error = files_read(handle, offset, queue_reserve(out, count), &count);
    if (!error && !count && asked)
        error = SFTP_END;
    if (error) {
        out->tail = out->head + before; /* as if it had not begun */
        return error;
    }
    queue_commit(out, count);
    packet_end(out, packet);
    uint8_t *length = out->bytes + out->head + length_at;
    for (int i = 0; i < 4; i++)
        length[i] = (uint8_t)(count >> (24 - 8 * i));
    return 0;
}

static int on_write(struct request *request)
{
    size_t count;
    uint32_t handle = take_handle(request);
    uint64_t offset = take_64(&request->in);
    const uint8_t *bytes = take_bytes(&request->in, &count);
    return request->in.is_bad ? REFUSED : done(request, files_write(handle, offset, bytes, count));
}

static int on_read_directory(struct request *request)
{
    char name[NAME_MAX + 1];
    struct stat status;
    struct queue entries = {0};
    uint32_t handle = take_handle(request), count = 0;
    int error = request->in.is_bad ? REFUSED : 0;
    while (!error && count < ENTRIES_MAX) {
        error = files_next(handle, name, &status);
        if (error)
            break;
        put_entry(&entries, name, &status);
        count++;
    }
    if (count) {
        size_t packet = packet_begin(request->out, SFTP_NAME, request->id);
        put_32(request->out, count);
        queue_append(request->out, queue_head(&entries), queue_length(&entries));
        packet_end(request->out, packet);
        error = 0;
    }
    queue_free(&entries);
    return error;
}

static int on_handle_status(struct request *request)
{
    struct stat status;
    uint32_t handle = take_handle(request);
    int error = request->in.is_bad ? REFUSED : files_status(handle, &status);
    return answer_attributes(request, error, &status);
}

static int on_set_handle(struct request *request)
{
    struct wanted wanted;
    uint32_t handle = take_handle(request);
    take_wanted(&request->in, &wanted);
    return request->in.is_bad ? REFUSED : done(request, files_set(handle, &wanted));
}

/* --- paths --- */

static int status_of(struct request *request, bool is_followed)
{
    char path[PATH_MAX];
    struct stat status;
    take_text(&request->in, path);
    int error = request->in.is_bad ? REFUSED : paths_status(path, is_followed, &status);
    return answer_attributes(request, error, &status);
}

static int on_status(struct request *request) { return status_of(request, true); }

static int on_link_status(struct request *request) { return status_of(request, false); }

static int set(struct request *request, bool is_followed)
{
    char path[PATH_MAX];
    struct wanted wanted;
    take_text(&request->in, path);
    take_wanted(&request->in, &wanted);
    return request->in.is_bad ? REFUSED : done(request, paths_set(path, is_followed, &wanted));
}

static int on_set(struct request *request) { return set(request, true); }

static int on_set_link(struct request *request) { return set(request, false); }

static int on_one_path(struct request *request, int (*act)(const char *path))
{
    char path[PATH_MAX];
    take_text(&request->in, path);
    return request->in.is_bad ? REFUSED : done(request, act(path));
}

static int on_remove(struct request *request) { return on_one_path(request, paths_remove); }

static int on_remove_directory(struct request *request)
{
    return on_one_path(request, paths_remove_directory);
}

static int on_make_directory(struct request *request)
{
    char path[PATH_MAX];
    struct wanted wanted;
    take_text(&request->in, path);
    take_wanted(&request->in, &wanted);
    return request->in.is_bad ? REFUSED : done(request, paths_make_directory(path, &wanted));
}

static int on_two_paths(struct request *request, int (*act)(const char *one, const char *two))
{
    char one[PATH_MAX], two[PATH_MAX];
    take_text(&request->in, one);
    take_text(&request->in, two);
    return request->in.is_bad ? REFUSED : done(request, act(one, two));
}

static int move(const char *from, const char *to) { return paths_rename(from, to, false); }

static int replace(const char *from, const char *to) { return paths_rename(from, to, true); }

static int on_rename(struct request *request) { return on_two_paths(request, move); }

static int on_replace(struct request *request) { return on_two_paths(request, replace); }

static int on_link(struct request *request) { return on_two_paths(request, paths_link); }

/* In OpenSSH's order, which every client keeps to: first what the link says. */
static int on_symlink(struct request *request) { return on_two_paths(request, paths_symlink); }

static int on_read_link(struct request *request)
{
    char path[PATH_MAX], content[PATH_MAX];
    take_text(&request->in, path);
    int error = request->in.is_bad ? REFUSED : paths_read_link(path, content);
    return error ? error : answer_name(request, content);
}

static int on_resolve(struct request *request)
{
    char path[PATH_MAX], resolved[PATH_MAX];
    take_text(&request->in, path);
    int error = request->in.is_bad ? REFUSED : paths_resolve(*path ? path : ".", resolved);
    return error ? error : answer_name(request, resolved);
}

/* --- what OpenSSH adds --- */

static int on_expand(struct request *request)
{
    char path[PATH_MAX], whole[2 * PATH_MAX], resolved[PATH_MAX];
    take_text(&request->in, path);
    if (request->in.is_bad)
        return REFUSED;
    if (path[0] == '~' && path[1] && path[1] != '/')
        return ENOENT; /* of somebody else */
    const char *home = path[0] == '~' ? request->sftp->home : "";
    int length = snprintf(whole, sizeof whole, "%s%s", home, path + (path[0] == '~'));
    if (length >= PATH_MAX)
        return ENAMETOOLONG;
    int error = paths_resolve(*whole ? whole : ".", resolved);
    return error ? error : answer_name(request, resolved);
}

static int on_sync(struct request *request)
{
    uint32_t handle = take_handle(request);
    return request->in.is_bad ? REFUSED : done(request, files_sync(handle));
}

static int answer_space(struct request *request, int error, const struct statvfs *space)
{
    if (error)
        return error;
    const uint64_t flags = (space->f_flag & ST_RDONLY ? 1u : 0u) |
                           (space->f_flag & ST_NOSUID ? 2u : 0u);
    const uint64_t numbers[] = {space->f_bsize,  space->f_frsize, space->f_blocks, space->f_bfree,
                                space->f_bavail, space->f_files,  space->f_ffree,  space->f_favail,
                                space->f_fsid,   flags,           space->f_namemax};
    size_t packet = packet_begin(request->out, SFTP_EXTENDED_REPLY, request->id);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        put_64(request->out, numbers[i]);
    packet_end(request->out, packet);
    return 0;
}

static int on_space(struct request *request)
{
    char path[PATH_MAX];
    struct statvfs space;
    take_text(&request->in, path);
    return answer_space(request, request->in.is_bad ? REFUSED : paths_space(path, &space), &space);
}

static int on_handle_space(struct request *request)
{
    struct statvfs space;
    uint32_t handle = take_handle(request);
    int error = request->in.is_bad ? REFUSED : files_space(handle, &space);
    return answer_space(request, error, &space);
}

static int on_limits(struct request *request)
{
    const uint64_t limits[] = {SFTP_PACKET_MAX, SFTP_DATA_MAX, SFTP_DATA_MAX, SFTP_HANDLES_MAX};
    size_t packet = packet_begin(request->out, SFTP_EXTENDED_REPLY, request->id);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        put_64(request->out, limits[i]);
    packet_end(request->out, packet);
    return 0;
}

static const struct extension {
    const char *name, *version;
    int (*act)(struct request *request);
} extensions[] = {
    {"posix-rename@openssh.com", "1", on_replace}, {"statvfs@openssh.com", "2", on_space},
    {"fstatvfs@openssh.com", "2", on_handle_space}, {"hardlink@openssh.com", "1", on_link},
    {"fsync@openssh.com", "1", on_sync},           {"lsetstat@openssh.com", "1", on_set_link},
    {"limits@openssh.com", "1", on_limits},        {"expand-path@openssh.com", "1", on_expand},
};

static int on_extended(struct request *request)
{
    char name[PATH_MAX];
    take_text(&request->in, name);
    for (size_t i = 0; i < sizeof extensions / sizeof *extensions; i++)
        if (strcmp(extensions[i].name, name) == 0)
            return extensions[i].act(request);
    return request->in.is_bad ? REFUSED : ENOSYS;
}

/* --- all of them --- */

void request_answer_version(struct queue *out)
{
    size_t packet = packet_begin(out, SFTP_VERSION, VERSION); /* where others have an id */
    for (size_t i = 0; i < sizeof extensions / sizeof *extensions; i++) {
        put_text(out, extensions[i].name);
        put_text(out, extensions[i].version);
    }
    packet_end(out, packet);
}

int request_act(struct request *request, uint8_t type)
{
    static int (*const acts[])(struct request *request) = {
        [SFTP_OPEN] = on_open,         [SFTP_CLOSE] = on_close,
        [SFTP_READ] = on_read,         [SFTP_WRITE] = on_write,
        [SFTP_LSTAT] = on_link_status, [SFTP_FSTAT] = on_handle_status,
        [SFTP_SETSTAT] = on_set,       [SFTP_FSETSTAT] = on_set_handle,
        [SFTP_OPENDIR] = on_open_directory, [SFTP_READDIR] = on_read_directory,
        [SFTP_REMOVE] = on_remove,     [SFTP_MKDIR] = on_make_directory,
        [SFTP_RMDIR] = on_remove_directory, [SFTP_REALPATH] = on_resolve,
        [SFTP_STAT] = on_status,       [SFTP_RENAME] = on_rename,
        [SFTP_READLINK] = on_read_link, [SFTP_SYMLINK] = on_symlink,
        [SFTP_EXTENDED] = on_extended,
    };
    bool is_known = type < sizeof acts / sizeof *acts && acts[type];
    return is_known ? acts[type](request) : ENOSYS;
}
