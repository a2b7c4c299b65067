/* From a kernel that has just started to a link, and the end. The initramfs holds
 * the agent as /init, the modules, and in /modules/order their names, one a line. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"

#define PORTS "/sys/class/virtio-ports"
#define PORT_NAME "agent\n"
#define PORT_PATIENCE_NS (10 * 1000000000LL)
#define PORT_LOOK_NS 500000L
#define FILES_SOFT 65536u
#define FILES_HARD 1048576u

static bool is_ours;

bool machine_is_ours(void) { return is_ours; }

void machine_recognise(const char *name)
{
    is_ours = getpid() == 1 && strcmp(name, "/init") == 0;
}

static bool mount_at(const char *kind, const char *place, unsigned long more)
{
    bool is_there = mkdir(place, 0755) == 0 || errno == EEXIST;
    return is_there && (mount(kind, place, kind, MS_NOSUID | more, NULL) == 0 ||
                        errno == EBUSY); /* a kernel may have mounted its /dev */
}

/* A kernel without a console has opened nothing for its first process. */
static bool open_standard(void)
{
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    return open("/dev/null", O_RDWR) == 0 && dup(0) == 1 && open("/dev/kmsg", O_WRONLY) == 2;
}

/* One that is missing shows when what it drives is. */
static void load_module(const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
        fprintf(stderr, "mags-agent: %s: %s\n", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void load_modules(void)
{
    FILE *order = fopen("/modules/order", "re");
    char name[NAME_MAX + 2];
    if (!order)
        return;
    while (fgets(name, sizeof name, order)) {
        name[strcspn(name, "\n")] = 0;
        if (*name)
            load_module(name);
    }
    fclose(order);
}

/* As in a gVisor sandbox. How many processes there may be is not a user's limit. */
static void set_limits(void)
{
    const struct rlimit files = {.rlim_cur = FILES_SOFT, .rlim_max = FILES_HARD};
    const struct rlimit none = {0, 0}, unbounded = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_NOFILE, &files);
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_NPROC, &unbounded);
}

static void write_setting(const char *path, const char *value)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, strlen(value)) < 0)
        fprintf(stderr, "mags-agent: %s: %s\n", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

/* A guest whose memory is used up would take the pages of its programs away and read
 * them again, over and over: one that cannot keep what it used within that time has a
 * process killed at once. */
static void set_memory_policy(void)
{
    write_setting("/sys/kernel/mm/lru_gen/enabled", "y");
    write_setting("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000");
}

static bool port_is_ours(int ports, const char *port)
{
    char path[NAME_MAX + 8], name[sizeof PORT_NAME];
    snprintf(path, sizeof path, "%s/name", port);
    int fd = openat(ports, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, name, sizeof name);
    close(fd);
    return length == sizeof PORT_NAME - 1 && memcmp(name, PORT_NAME, (size_t)length) == 0;
}

/* Returns -1 while the port is not there. */
static int open_port(void)
{
    int fd = -1;
    DIR *ports = opendir(PORTS);
    if (!ports)
        return -1;
    for (struct dirent *entry; fd < 0 && (entry = readdir(ports));) {
        char device[NAME_MAX + 8];
        if (entry->d_name[0] == '.' || !port_is_ours(dirfd(ports), entry->d_name))
            continue;
        snprintf(device, sizeof device, "/dev/%s", entry->d_name);
        fd = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    closedir(ports);
    return fd;
}

/* A port is told of its far end after its name; read before that it would seem ended. */
static bool is_connected(int port)
{
    struct pollfd entry = {.fd = port};
    return poll(&entry, 1, 0) >= 0 && !(entry.revents & POLLHUP);
}

static bool wait_for_link(int *link)
{
    const struct timespec a_while = {.tv_nsec = PORT_LOOK_NS};
    int64_t give_up_at_ns = now_ns() + PORT_PATIENCE_NS;
    *link = -1;
    for (;;) {
        if (*link < 0)
            *link = open_port();
        if (*link >= 0 && is_connected(*link))
            return true;
        if (now_ns() > give_up_at_ns)
            return false;
        nanosleep(&a_while, NULL);
    }
}

const char *machine_boot(int *link)
{
    const unsigned long safe = MS_NOEXEC | MS_NODEV;
    bool is_mounted = mount_at("proc", "/proc", safe) && mount_at("sysfs", "/sys", safe) &&
                      mount_at("devtmpfs", "/dev", 0);
    if (!is_mounted || !open_standard())
        return "no /proc, /sys or /dev";
    load_modules();
    set_limits();
    set_memory_policy();
    int error = network_start();
    if (error)
        fprintf(stderr, "mags-agent: lo: %s\n", strerror(error));
    return wait_for_link(link) ? NULL : "no link";
}

void machine_end(void)
{
    kill(-1, SIGKILL);
    sync();
    reboot(RB_POWER_OFF);
}
