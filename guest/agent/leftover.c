/* Output of what a program has left behind. Its stream is over, and nobody reads: but whoever
 * writes into a pipe without a reader dies of it, and a daemon should not. So it is read, and
 * dropped. */
#define _GNU_SOURCE
#include <errno.h>
#include <unistd.h>

#include "services.h"

static struct leftover {
    int fd; /* 0: the place is free */
    int polled_at;
} all[LEFTOVERS_MAX];
static size_t oldest;

void leftover_keep(int fd)
{
    for (size_t i = 0; i < LEFTOVERS_MAX; i++)
        if (!all[i].fd) {
            all[i] = (struct leftover){fd, -1};
            return;
        }
    close(all[oldest].fd);
    all[oldest] = (struct leftover){fd, -1};
    oldest = (oldest + 1) % LEFTOVERS_MAX;
}

void leftover_watch(struct poll_set *set)
{
    for (size_t i = 0; i < LEFTOVERS_MAX; i++)
        all[i].polled_at = all[i].fd ? poll_add(set, all[i].fd, POLLIN) : -1;
}

void leftover_pump(const struct poll_set *set)
{
    static char dropped[65536];
    for (size_t i = 0; i < LEFTOVERS_MAX; i++) {
        if (!poll_is_ready(set, all[i].polled_at))
            continue;
        ssize_t got = read(all[i].fd, dropped, sizeof dropped);
        if (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)))
            continue;
        close(all[i].fd);
        all[i].fd = 0;
    }
}
