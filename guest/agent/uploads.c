/* Uploads: files of the caller's that lie in /root, as everything else does that the
 * guest may change, and are shown in /uploads. That folder is the tmpfs's: what is in
 * it is no part of the disk, and a link takes no memory to speak of. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

#define SHOWN "/uploads"
#define OURS RUN_DIRECTORY SHOWN

static bool is_folder(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

bool uploads_cover(void)
{
    if (mkdir(OURS, 0755) < 0 && errno != EEXIST)
        return false;
    /* Whoever had the disk before may have put something else there. */
    return !is_folder(SHOWN) || mount(OURS, SHOWN, NULL, MS_BIND, NULL) == 0;
}

static int show(const char *name)
{
    char link[PATH_MAX], target[PATH_MAX];
    if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return EINVAL;
    if (snprintf(link, sizeof link, OURS "/%s", name) >= PATH_MAX ||
        snprintf(target, sizeof target, "/root/%s", name) >= PATH_MAX)
        return ENAMETOOLONG;
    if (unlink(link) < 0 && errno != ENOENT)
        return errno;
    return symlink(target, link) < 0 ? errno : 0;
}

int uploads_show(struct fields request, struct queue *answer)
{
    size_t cursor = 0;
    int error = 0;
    for (const char *field; !error &&
                            (field = fields_next(request.bytes, request.length, &cursor));) {
        const char *name = field_value(field, "name");
        if (name)
            error = show(name);
    }
    if (!error && !is_folder(SHOWN))
        queue_field(answer, "absent=" SHOWN);
    return error;
}
