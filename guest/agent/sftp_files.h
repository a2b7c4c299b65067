/* Files as the SFTP server has them: open ones under numbers, all others by path. Paths begin
 * at the working directory. Unless it is said otherwise a function returns 0 or an errno. */
#ifndef MAGS_SFTP_FILES_H
#define MAGS_SFTP_FILES_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define SFTP_HANDLES_MAX 1024u
#define SFTP_END (-1) /* no errno: there is no more */

/* Attributes that a client sets: those whose flags are set. */
enum { HAS_SIZE = 1, HAS_OWNER = 2, HAS_MODE = 4, HAS_TIMES = 8 };
struct wanted {
    uint32_t flags;
    uint64_t size;
    uint32_t uid, gid, mode, accessed, modified;
};

enum { OPEN_READ = 1, OPEN_WRITE = 2, OPEN_APPEND = 4, OPEN_CREATE = 8, OPEN_CUT = 16,
       OPEN_NEW = 32 };

int files_open(const char *path, uint32_t how, const struct wanted *wanted, uint32_t *handle);
int files_open_directory(const char *path, uint32_t *handle);
int files_close(uint32_t handle);

/* Read at most *count bytes; *count says how many there were, 0 at the end. */
int files_read(uint32_t handle, uint64_t offset, uint8_t *bytes, size_t *count);
int files_write(uint32_t handle, uint64_t offset, const uint8_t *bytes, size_t count);
int files_sync(uint32_t handle);

/* The next entry of an open directory, or SFTP_END. */
int files_next(uint32_t handle, char name[NAME_MAX + 1], struct stat *status);

/* Of what is open, or lies at `path`. */
int files_status(uint32_t handle, struct stat *status);
int files_set(uint32_t handle, const struct wanted *wanted);
int files_space(uint32_t handle, struct statvfs *space);
int paths_status(const char *path, bool is_followed, struct stat *status);
int paths_set(const char *path, bool is_followed, const struct wanted *wanted);
int paths_space(const char *path, struct statvfs *space);

int paths_remove(const char *path);
int paths_make_directory(const char *path, const struct wanted *wanted);
int paths_remove_directory(const char *path);
int paths_rename(const char *from, const char *to, bool may_replace);
int paths_link(const char *from, const char *to);
int paths_symlink(const char *content, const char *path);
int paths_read_link(const char *path, char content[PATH_MAX]);

/* Without links, dots and double slashes; its last element need not be there. */
int paths_resolve(const char *path, char resolved[PATH_MAX]);

#endif
