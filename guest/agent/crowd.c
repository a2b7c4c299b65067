/* How many processes the guest may run beside the agent. It starts them outside of
 * the group that is limited and each enters that before it becomes its program: so
 * a group that is full keeps nobody from looking into it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

#define GROUPS "/groups"
#define GROUP GROUPS "/guest"
#define THREADS_MAX "/proc/sys/kernel/threads-max"
#define PID_MAX "/proc/sys/kernel/pid_max"
#define PIDS_OF_KERNEL 4194304u /* more it has not */
/* The kernel's own threads, and what the agent starts beyond the limit. */
#define THREADS_BESIDE 1024u

static int entrance = -1; /* the group's cgroup.procs */
static int account = -1;  /* its cpu.stat */
static int group = -1;    /* its folder, which is nowhere once the root is another */

bool crowd_enter(void) { return entrance < 0 || write(entrance, "0", 1) == 1; }

bool crowd_measure(uint64_t *cpu_ns)
{
    char text[512];
    unsigned long long used_us;
    ssize_t length = account < 0 ? -1 : pread(account, text, sizeof text - 1, 0);
    if (length <= 0)
        return false;
    text[length] = 0;
    if (sscanf(text, "usage_usec %llu", &used_us) != 1)
        return false;
    *cpu_ns = used_us * 1000;
    return true;
}

static bool write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool is_written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int error = errno;
    close(fd);
    errno = error;
    return is_written;
}

/* See to it that one of the kernel's own limits, which hold for the agent too, is not
 * below `least`. */
static bool raise_limit(const char *path, unsigned least)
{
    char text[32];
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    unsigned long now = fgets(text, sizeof text, file) ? strtoul(text, NULL, 10) : 0;
    fclose(file);
    snprintf(text, sizeof text, "%u", least);
    return now >= least || write_text(path, text);
}

/* Those go by the memory and the number of processors. */
static bool make_room(unsigned count)
{
    unsigned least = count + THREADS_BESIDE;
    return raise_limit(THREADS_MAX, least) &&
           raise_limit(PID_MAX, least < PIDS_OF_KERNEL ? least : PIDS_OF_KERNEL);
}

int crowd_limit(unsigned count)
{
    char text[16];
    snprintf(text, sizeof text, "%u", count);
    bool is_there = mkdir(GROUPS, 0755) == 0 && mount("cgroup2", GROUPS, "cgroup2", 0, NULL) == 0;
    bool is_limited = is_there && write_text(GROUPS "/cgroup.subtree_control", "+pids") &&
                      mkdir(GROUP, 0755) == 0 && write_text(GROUP "/pids.max", text) &&
                      make_room(count);
    if (is_limited)
        group = open(GROUP, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (group >= 0)
        entrance = openat(group, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    if (entrance >= 0)
        account = openat(group, "cpu.stat", O_RDONLY | O_CLOEXEC);
    return entrance < 0 ? errno : 0;
}

bool crowd_halt(bool is_halted)
{
    errno = ENODEV;
    int fd = group < 0 ? -1 : openat(group, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool is_written = write(fd, is_halted ? "1" : "0", 1) == 1;
    int error = errno;
    close(fd);
    errno = error;
    return is_written;
}

bool crowd_is_halted(void)
{
    char text[128] = {0};
    int fd = openat(group, "cgroup.events", O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    return count > 0 && strstr(text, "frozen 1");
}
