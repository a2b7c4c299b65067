#define _GNU_SOURCE
#include "spare.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SPARE_BYTES (64 * 1024)

/* Beside the work directory: in neither side of the overlay. */
static int place(const char *work, char *path)
{
    const char *end = strrchr(work, '/');
    int length = snprintf(path, PATH_MAX, "%.*s/spare", end ? (int)(end - work) : 1, end ? work : ".");
    return length < PATH_MAX;
}

void spare_release(const char *work)
{
    char path[PATH_MAX];
    if (place(work, path))
        unlink(path);
}

void spare_hold(const char *work)
{
    char path[PATH_MAX];
    int file = place(work, path) ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file < 0)
        return;
    for (off_t size = SPARE_BYTES; size >= 4096; size /= 2)
        if (fallocate(file, 0, 0, size) == 0)
            break;
    close(file);
}
