/* The SFTP server without files: whatever a client sends, each whole packet has one answer,
 * which is whole, is about what was asked and bears its number.
 */
#include <errno.h>

#include "../agent/sftp_packet.h"
#include "script.h"

#define ANSWER_MAX (SFTP_DATA_MAX + 64u)

static struct script *world; /* what the files are like */

static int outcome(void)
{
    static const int errors[] = {0, 0, 0, 0, ENOENT, EACCES, EIO, SFTP_END};
    return errors[script_byte(world) % 8];
}

static void invent_status(struct stat *status)
{
    memset(status, 0, sizeof *status);
    status->st_mode = (mode_t)script_number(world, 2);
    status->st_size = (off_t)script_number(world, 8);
    status->st_mtime = (time_t)script_number(world, 8);
    status->st_uid = 0;
}

static void check_path(const char *path) { REQUIRE(strlen(path) < PATH_MAX); }

int files_open(const char *path, uint32_t how, const struct wanted *wanted, uint32_t *handle)
{
    check_path(path);
    *handle = how + wanted->mode;
    return outcome();
}

int files_open_directory(const char *path, uint32_t *handle)
{
    check_path(path);
    *handle = 7;
    return outcome();
}

int files_close(uint32_t handle) { return handle == 1 ? EBADF : outcome(); }

int files_read(uint32_t handle, uint64_t offset, uint8_t *bytes, size_t *count)
{
    REQUIRE(*count <= SFTP_DATA_MAX);
    memset(bytes, (int)(handle + offset), *count);
    *count = *count ? script_number(world, 3) % (*count + 1) : 0;
    return outcome();
}

int files_write(uint32_t handle, uint64_t offset, const uint8_t *bytes, size_t count)
{
    uint64_t sum = handle + offset;
    for (size_t i = 0; i < count; i++)
        sum += bytes[i];
    return sum == 1 ? ENOSPC : outcome();
}

int files_sync(uint32_t handle) { return handle == 1 ? EBADF : outcome(); }

int files_next(uint32_t handle, char name[NAME_MAX + 1], struct stat *status)
{
    size_t length = script_byte(world);
    memset(name, 'n', length);
    name[length] = 0;
    invent_status(status);
    return handle == 1 ? EBADF : outcome();
}

int files_status(uint32_t handle, struct stat *status)
{
    invent_status(status);
    return handle == 1 ? EBADF : outcome();
}

int files_set(uint32_t handle, const struct wanted *wanted)
{
    return handle == wanted->flags ? EBADF : outcome();
}

int files_space(uint32_t handle, struct statvfs *space)
{
    memset(space, 0, sizeof *space);
    return handle == 1 ? EBADF : outcome();
}

int paths_status(const char *path, bool is_followed, struct stat *status)
{
    check_path(path);
    invent_status(status);
    return is_followed ? 0 : outcome();
}

int paths_set(const char *path, bool is_followed, const struct wanted *wanted)
{
    check_path(path);
    return is_followed && wanted->size ? 0 : outcome();
}

int paths_space(const char *path, struct statvfs *space)
{
    check_path(path);
    memset(space, 0, sizeof *space);
    return outcome();
}

static int on_path(const char *path)
{
    check_path(path);
    return outcome();
}

int paths_remove(const char *path) { return on_path(path); }

int paths_make_directory(const char *path, const struct wanted *wanted)
{
    return wanted->mode == 1 ? EPERM : on_path(path);
}

int paths_remove_directory(const char *path) { return on_path(path); }

int paths_rename(const char *from, const char *to, bool may_replace)
{
    check_path(to);
    return may_replace ? 0 : on_path(from);
}

int paths_link(const char *from, const char *to)
{
    check_path(to);
    return on_path(from);
}

int paths_symlink(const char *content, const char *path) { return paths_link(content, path); }

int paths_read_link(const char *path, char content[PATH_MAX])
{
    strcpy(content, path);
    return on_path(path);
}

int paths_resolve(const char *path, char resolved[PATH_MAX])
{
    strcpy(resolved, path);
    return on_path(path);
}

/* --- the client --- */

static uint32_t number_at(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void check_answer(const struct queue *to_send, uint8_t asked, uint32_t id)
{
    const uint8_t *at = queue_head(to_send);
    size_t length = queue_length(to_send);
    REQUIRE(length >= 9 && length <= ANSWER_MAX && number_at(at) == length - 4);
    if (asked == SFTP_INIT) {
        REQUIRE(at[4] == SFTP_VERSION);
        return;
    }
    REQUIRE(number_at(at + 5) == id);
    REQUIRE((at[4] >= SFTP_STATUS && at[4] <= SFTP_ATTRS) || at[4] == SFTP_EXTENDED_REPLY);
}

/* Send some bytes: as they are, or as a packet. */
static void send_some(struct script *client, struct queue *received)
{
    static const uint8_t types[] = {SFTP_OPEN, SFTP_READ, SFTP_WRITE, SFTP_SETSTAT, SFTP_READDIR,
                                    SFTP_RENAME, SFTP_EXTENDED};
    const uint8_t *piece;
    uint8_t how = script_byte(client);
    size_t length = script_bytes(client, 1u + script_byte(client), &piece);
    if (how % 8 < 7) {
        put_32(received, (uint32_t)length + 5);
        put_8(received, how < 128 ? types[how % 7] : how / 8);
        put_32(received, how);
    }
    queue_append(received, piece, length);
}

/* Have the next packet answered; returns what the server does. */
static int answer_one(struct sftp *sftp, struct queue *received, struct queue *to_send)
{
    size_t have = queue_length(received);
    const uint8_t *packet = have ? queue_head(received) : NULL;
    uint8_t type = have > 4 ? packet[4] : 0;
    uint32_t id = have > 8 ? number_at(packet + 5) : 0;
    size_t whole = have > 3 ? number_at(packet) + (size_t)4 : 0;
    int answered = sftp_answer(sftp, received, to_send);
    REQUIRE(answered > 0 || queue_length(to_send) == 0);
    if (answered <= 0)
        return answered;
    REQUIRE(queue_length(received) == have - whole && whole >= 9);
    check_answer(to_send, type, id);
    queue_take(to_send, queue_length(to_send));
    return answered;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    struct script client = {bytes, bytes + count}, files = {bytes, bytes + count};
    struct sftp sftp = {.home = "/root"};
    struct queue received = {0}, to_send = {0};
    world = &files;
    sftp.has_begun = script_byte(&client) % 8 != 0;
    int answered = 0;
    while (answered >= 0 && !script_is_over(&client)) {
        send_some(&client, &received);
        do
            answered = answer_one(&sftp, &received, &to_send);
        while (answered > 0);
    }
    queue_free(&received);
    queue_free(&to_send);
    return 0;
}
