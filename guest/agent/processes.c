/* How much the guest's own processes have used of the CPU. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "services.h"

#define KERNEL_THREAD 0x00200000u /* PF_KTHREAD */

struct usage {
    unsigned long long processes, ticks;
};

/* Add what a process and the children it waited for have used. One that ends
 * meanwhile counts nothing here: its parent has it. */
static void add_process(int folder, struct usage *usage)
{
    char text[1024];
    int fd = openat(folder, "stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return;
    text[length] = 0;
    const char *rest = strrchr(text, ')'); /* the name before it may hold anything */
    char state;
    unsigned flags;
    unsigned long long user, system;
    long long children_user, children_system;
    const char *format = ") %c %*d %*d %*d %*d %*d %u %*u %*u %*u %*u %llu %llu %lld %lld";
    if (!rest || sscanf(rest, format, &state, &flags, &user, &system, &children_user,
                        &children_system) != 6)
        return;
    if (flags & KERNEL_THREAD)
        return;
    usage->processes += state != 'Z' && state != 'X';
    usage->ticks += user + system + (unsigned long long)(children_user + children_system);
}

static bool scan(struct usage *usage)
{
    DIR *proc = opendir("/proc");
    if (!proc)
        return false;
    for (struct dirent *entry; (entry = readdir(proc));) {
        if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
            continue;
        int folder = openat(dirfd(proc), entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (folder < 0)
            continue;
        add_process(folder, usage);
        close(folder);
    }
    closedir(proc);
    return true;
}

static unsigned long long in_ns(struct timeval time)
{
    return (unsigned long long)time.tv_sec * 1000000000u + (unsigned long long)time.tv_usec * 1000u;
}

int processes_measure(struct queue *answer)
{
    struct usage usage = {0};
    struct rusage ended;
    uint64_t cpu_ns;
    if (!scan(&usage) || getrusage(RUSAGE_CHILDREN, &ended) < 0)
        return errno;
    if (!crowd_measure(&cpu_ns)) {
        uint64_t tick_ns = 1000000000u / (uint64_t)sysconf(_SC_CLK_TCK);
        cpu_ns = usage.ticks * tick_ns + in_ns(ended.ru_utime) + in_ns(ended.ru_stime);
    }
    queue_field(answer, "processes=%llu", usage.processes);
    queue_field(answer, "cpu_ns=%llu", (unsigned long long)cpu_ns);
    queue_field(answer, "now_ns=%lld", (long long)now_ns());
    return 0;
}
