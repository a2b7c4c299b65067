#define _GNU_SOURCE
#include "links.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_FIRST 256

static struct link *slot_of(const struct links *links, ino_t inode)
{
    size_t at = (size_t)(((uint64_t)inode * 0x9e3779b97f4a7c15u) >> 32) & (links->capacity - 1);
    while (links->slots[at].path && links->slots[at].inode != inode)
        at = (at + 1) & (links->capacity - 1);
    return &links->slots[at];
}

static void grow(struct links *links)
{
    struct links larger = {.count = links->count,
                           .capacity = links->capacity ? 2 * links->capacity : CAPACITY_FIRST};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (!larger.slots)
        abort();
    for (size_t i = 0; i < links->capacity; i++)
        if (links->slots[i].path)
            *slot_of(&larger, links->slots[i].inode) = links->slots[i];
    free(links->slots);
    *links = larger;
}

const char *links_meet(struct links *links, ino_t inode, const char *path)
{
    if (2 * links->count >= links->capacity)
        grow(links);
    struct link *slot = slot_of(links, inode);
    if (slot->path)
        return slot->path;
    slot->inode = inode;
    slot->path = strdup(path);
    if (!slot->path)
        abort();
    links->count++;
    return NULL;
}

void links_free(struct links *links)
{
    for (size_t i = 0; i < links->capacity; i++)
        free(links->slots[i].path);
    free(links->slots);
    memset(links, 0, sizeof *links);
}
