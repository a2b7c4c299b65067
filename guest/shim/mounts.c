#define _GNU_SOURCE
#include "spare.h"
#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef LOOP_CONFIGURE
#define LOOP_CONFIGURE 0x4C0A
#endif
#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 0x00000004
#endif
#define LOOP_TRIES 64
#define OPTIONS_BYTES 4096 /* the kernel takes one page */

/* `<fd>:<path>` */
static bool parse_fd_path(const char *value, int *fd, const char **path)
{
    return plan_number(value, ':', fd, path) && **path;
}

static bool hold(const char *value)
{
    int fd;
    errno = EINVAL;
    return plan_number(value, 0, &fd, NULL) && fcntl(fd, F_GETFD) >= 0;
}

static bool join_network(const char *value)
{
    int fd;
    errno = EINVAL;
    return plan_number(value, 0, &fd, NULL) && setns(fd, CLONE_NEWNET) == 0;
}

static bool mount_tmpfs(const char *value)
{
    return mount("tmpfs", value, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") == 0;
}

/* It shows the processes of the shim's own pid namespace. */
static bool mount_proc(const char *value)
{
    return mount("proc", value, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
}

static bool hide(const char *value)
{
    return mount("tmpfs", value, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
                 "mode=0555,nr_blocks=1") == 0;
}

/* 0755 whatever the umask: the upper directory's mode is that of the guest's root. */
static bool make_directory(const char *value)
{
    if (mkdir(value, 0755) == 0)
        return chmod(value, 0755) == 0;
    struct stat status;
    return errno == EEXIST && stat(value, &status) == 0 && S_ISDIR(status.st_mode);
}

/* `<target>:<path>` */
static bool make_symlink(const char *value)
{
    const char *separator = strchr(value, ':');
    errno = EINVAL;
    if (!separator || separator == value || !separator[1])
        return false;
    char *target = strndup(value, (size_t)(separator - value));
    bool is_made = target && symlink(target, separator + 1) == 0;
    int error = errno;
    free(target);
    errno = error;
    return is_made;
}

/* `<fd>:<mode>:<path>` */
static bool copy(const char *value)
{
    int from;
    const char *mode_text;
    errno = EINVAL;
    if (!plan_number(value, ':', &from, &mode_text))
        return false;
    char *path;
    unsigned long mode = strtoul(mode_text, &path, 8);
    if (path == mode_text || *path != ':' || mode > 07777)
        return false;
    int to = open(path + 1, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0)
        return false;
    static char buffer[256 * 1024];
    ssize_t count;
    off_t at = 0;
    while ((count = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (write(to, buffer, (size_t)count) != count) {
            count = -1;
            break;
        }
        at += count;
    }
    bool is_done = count == 0 && fchmod(to, (mode_t)mode) == 0;
    close(to);
    return is_done;
}

static bool attach_layer(const char *value)
{
    int fd;
    const char *path;
    errno = EINVAL;
    return parse_fd_path(value, &fd, &path) &&
           syscall(SYS_move_mount, fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) == 0;
}

/* A loop device over `fd` that goes when its last user does; `name` is its path. */
static int attach_loop(int fd, char *name, size_t size)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return -1;
    int device = -1;
    for (int i = 0; i < LOOP_TRIES && device < 0; i++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            break;
        snprintf(name, size, "/dev/loop%d", number);
        device = open(name, O_RDWR | O_CLOEXEC);
        if (device < 0)
            break;
        struct loop_config config = {.fd = (unsigned)fd, .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
        if (ioctl(device, LOOP_CONFIGURE, &config) == 0)
            break;
        int error = errno;
        close(device);
        device = -1;
        errno = error;
        if (error != EBUSY) /* another may have taken the free one in between */
            break;
    }
    int error = errno;
    close(control);
    errno = error;
    return device;
}

static bool attach_disk(const char *value)
{
    int fd;
    const char *path;
    char name[32];
    errno = EINVAL;
    if (!parse_fd_path(value, &fd, &path))
        return false;
    int device = attach_loop(fd, name, sizeof name);
    if (device < 0)
        return false;
    /* Without "discard": see moment.py, of whose copies each hole makes one piece more. */
    bool is_mounted = mount(name, path, "ext4", MS_NOSUID | MS_NODEV, "noinit_itable") == 0;
    int error = errno;
    close(device);
    errno = error;
    return is_mounted;
}

/* `<target>:<upper>:<work>:<lower>[:<lower>...]`; the lowers are in the kernel's own form. */
static bool mount_overlay(const char *value)
{
    char *words = strdup(value);
    char *rest = words;
    const char *target = strsep(&rest, ":");
    const char *upper = strsep(&rest, ":");
    const char *work = strsep(&rest, ":");
    char options[OPTIONS_BYTES];
    errno = EINVAL;
    bool is_mounted = false;
    if (rest && *rest) {
        int length = snprintf(options, sizeof options,
                              "lowerdir=%s,upperdir=%s,workdir=%s,"
                              "redirect_dir=nofollow,metacopy=off",
                              rest, upper, work);
        errno = ENAMETOOLONG;
        spare_release(work);
        is_mounted = (size_t)length < sizeof options &&
                     mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options) == 0;
    }
    int error = errno;
    if (is_mounted)
        spare_hold(work);
    free(words);
    errno = error;
    return is_mounted;
}

/* Descriptors are for these steps only, but those that are to be held. */
static void close_used(const struct plan *plan)
{
    static const char *const with_descriptor[] = {"netns", "copy", "layer", "disk"};
    for (size_t i = 0; i < plan->step_count; i++)
        for (size_t j = 0; j < sizeof with_descriptor / sizeof *with_descriptor; j++)
            if (strcmp(plan->steps[i].name, with_descriptor[j]) == 0)
                close(atoi(plan->steps[i].value));
}

bool mounts_run(const struct plan *plan, struct failure *failure)
{
    static const struct {
        const char *name;
        bool (*run)(const char *value);
    } steps[] = {
        {"hold", hold},          {"netns", join_network},     {"tmpfs", mount_tmpfs},
        {"proc", mount_proc},    {"hide", hide},              {"mkdir", make_directory},
        {"copy", copy},          {"symlink", make_symlink},   {"layer", attach_layer},
        {"disk", attach_disk},   {"overlay", mount_overlay},
    };
    for (size_t i = 0; i < plan->step_count; i++) {
        const struct plan_step *step = &plan->steps[i];
        for (size_t j = 0; j < sizeof steps / sizeof *steps; j++)
            if (strcmp(step->name, steps[j].name) == 0 && !steps[j].run(step->value))
                return fail(failure, "%s=%.200s: %m", step->name, step->value);
    }
    close_used(plan);
    return true;
}
