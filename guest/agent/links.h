/* Under which path a file with several names was met first. */
#ifndef MAGS_LINKS_H
#define MAGS_LINKS_H

#include <sys/types.h>

struct link {
    ino_t inode;
    char *path;
};

struct links {
    struct link *slots;
    size_t count, capacity; /* a power of two, or 0 */
};

/* The path that the inode was met under before, or NULL: then it is `path` from now on. */
const char *links_meet(struct links *links, ino_t inode, const char *path);

void links_free(struct links *links);

#endif
