/* What SFTP packets are made of. */
#ifndef MAGS_SFTP_PACKET_H
#define MAGS_SFTP_PACKET_H

#include "sftp.h"
#include "sftp_files.h"

enum sftp_type {
    SFTP_INIT = 1, SFTP_VERSION, SFTP_OPEN, SFTP_CLOSE, SFTP_READ, SFTP_WRITE, SFTP_LSTAT,
    SFTP_FSTAT, SFTP_SETSTAT, SFTP_FSETSTAT, SFTP_OPENDIR, SFTP_READDIR, SFTP_REMOVE, SFTP_MKDIR,
    SFTP_RMDIR, SFTP_REALPATH, SFTP_STAT, SFTP_RENAME, SFTP_READLINK, SFTP_SYMLINK,
    SFTP_STATUS = 101, SFTP_HANDLE, SFTP_DATA, SFTP_NAME, SFTP_ATTRS,
    SFTP_EXTENDED = 200, SFTP_EXTENDED_REPLY
};

enum sftp_status {
    SFTP_OK, SFTP_EOF, SFTP_NO_SUCH_FILE, SFTP_PERMISSION_DENIED, SFTP_FAILURE, SFTP_BAD_MESSAGE,
    SFTP_OP_UNSUPPORTED = 8
};

/* Where a packet is being read; past its end everything is nothing, and it `is_bad`. */
struct cursor {
    const uint8_t *at, *end;
    bool is_bad;
};

uint32_t take_32(struct cursor *cursor);
uint64_t take_64(struct cursor *cursor);
/* The bytes of a string: there are *count. */
const uint8_t *take_bytes(struct cursor *cursor, size_t *count);
/* A string that is a path or a word: shorter than PATH_MAX, without NUL. */
void take_text(struct cursor *cursor, char text[PATH_MAX]);
void take_wanted(struct cursor *cursor, struct wanted *wanted);

void put_8(struct queue *out, uint8_t value);
void put_32(struct queue *out, uint32_t value);
void put_64(struct queue *out, uint64_t value);
void put_bytes(struct queue *out, const void *bytes, size_t count);
void put_text(struct queue *out, const char *text);
void put_attributes(struct queue *out, const struct stat *status);

/* A packet: its length is known when it ends. */
size_t packet_begin(struct queue *out, enum sftp_type type, uint32_t id);
void packet_end(struct queue *out, size_t before);

/* One request: what is not read of it yet, and where its answer goes. */
struct request {
    const struct sftp *sftp;
    uint32_t id;
    struct cursor in;
    struct queue *out;
};

/* Do what is asked for, and answer. Returns 0, or an errno (or SFTP_END) to be the answer. */
int request_act(struct request *request, uint8_t type);
void request_answer_version(struct queue *out);

/* Whole answers. */
void answer_status(struct queue *out, uint32_t id, enum sftp_status status, const char *text);
void answer_error(struct queue *out, uint32_t id, int error);
/* Name, what `ls -l` would print of it, and attributes. */
void put_entry(struct queue *out, const char *name, const struct stat *status);

#endif
