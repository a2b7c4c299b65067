/* The root of a machine: layers of an image, a disk for what is written, and the
 * way into it. Until then the initramfs is the root. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spare.h"
#include "machine.h"

#define LAYERS "/layers"
#define DISK "/disk"
#define UPPER DISK "/upper"
#define WORK DISK "/work"
#define ROOT "/root"
/* Below all layers: the folders that this agent mounts on. Made in the root they would
 * count among what the guest has changed. */
#define PLACES "/places"
#define DEVICE_CHARS_MAX 8
#define PIDS_MAX 4194304ul
#define OPTIONS_BYTES 4096 /* the kernel takes one page */

static bool is_entered;
static int disk_fd = -1;

int root_disk(void) { return disk_fd; }

/* Name in the answer what was being done. Returns its errno. */
static int fail(struct queue *answer, const char *what)
{
    int error = errno;
    queue_field(answer, "failed=%s", what);
    return error;
}

static bool is_device(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    const char *letters = "abcdefghijklmnopqrstuvwxyz";
    return length > 2 && length <= DEVICE_CHARS_MAX && strncmp(name, "vd", 2) == 0 &&
           strspn(name, letters) == length;
}

static bool make_directory(const char *path)
{
    return mkdir(path, 0755) == 0 || errno == EEXIST;
}

/* Whether anything is mounted on `path`, which lies in the initramfs. */
static bool is_mounted(const char *path)
{
    struct stat here, root;
    return stat(path, &here) == 0 && stat("/", &root) == 0 && here.st_dev != root.st_dev;
}

/* Mount /dev/<device> unless something is mounted there. */
static bool mount_device(const char *device, const char *place, const char *kind,
                         unsigned long flags, const char *options)
{
    char source[32];
    snprintf(source, sizeof source, "/dev/%s", device);
    return make_directory(place) &&
           (is_mounted(place) ||
            mount(source, place, kind, MS_NOSUID | MS_NODEV | flags, options) == 0);
}

/* Call `each` with every `layer=`; stops at an errno, and returns it. */
static int for_layers(struct fields request, int (*each)(const char *name, void *state),
                      void *state)
{
    size_t cursor = 0;
    int error = 0;
    for (const char *field; !error &&
                            (field = fields_next(request.bytes, request.length, &cursor));) {
        const char *name = field_value(field, "layer");
        if (name)
            error = each(name, state);
    }
    return error;
}

static int check_layer(const char *name, void *count)
{
    ++*(size_t *)count;
    return is_device(name) ? 0 : EINVAL;
}

static int mount_layer(const char *name, void *answer)
{
    char place[32];
    snprintf(place, sizeof place, LAYERS "/%s", name);
    if (make_directory(LAYERS) && mount_device(name, place, "squashfs", MS_RDONLY, NULL))
        return 0;
    return fail(answer, place);
}

int root_mount_layers(struct fields request, struct queue *answer)
{
    size_t count = 0;
    if (is_entered)
        return EALREADY;
    int error = for_layers(request, check_layer, &count);
    if (!error && !count)
        error = EINVAL;
    return error ? error : for_layers(request, mount_layer, answer);
}

struct lowers {
    char text[OPTIONS_BYTES]; /* from the top, as the kernel takes them */
    char top[32];
};

static int add_lower(const char *name, void *state)
{
    struct lowers *lowers = state;
    char rest[OPTIONS_BYTES];
    snprintf(lowers->top, sizeof lowers->top, LAYERS "/%s", name);
    memcpy(rest, lowers->text, sizeof rest);
    int length = snprintf(lowers->text, sizeof lowers->text, "%s%s%s", lowers->top,
                          *rest ? ":" : "", rest);
    return (size_t)length < sizeof lowers->text ? 0 : ENAMETOOLONG;
}

/* The root looks as the topmost layer's does; an upper directory that is there stays. */
static bool make_upper(const char *top)
{
    struct stat status;
    if (!make_directory(WORK))
        return false;
    if (mkdir(UPPER, 0755) < 0)
        return errno == EEXIST;
    return stat(top, &status) == 0 && chown(UPPER, status.st_uid, status.st_gid) == 0 &&
           chmod(UPPER, status.st_mode & 07777) == 0;
}

/* Unlike disk and layers the root keeps suid programs and devices: it is a machine's. */
static bool mount_overlay(const struct lowers *lowers)
{
    char options[OPTIONS_BYTES];
    int length = snprintf(options, sizeof options,
                          "lowerdir=%s,upperdir=" UPPER ",workdir=" WORK
                          ",redirect_dir=nofollow,metacopy=off",
                          lowers->text);
    errno = ENAMETOOLONG;
    return (size_t)length < sizeof options && mount("overlay", ROOT, "overlay", 0, options) == 0;
}

static bool move_into_root(const char *place)
{
    char target[32];
    snprintf(target, sizeof target, ROOT "%s", place);
    return make_directory(target) && mount(place, target, NULL, MS_MOVE, NULL) == 0;
}

/* What devtmpfs has not: terminals, shared memory, a process's own descriptors. */
static bool furnish_devices(void)
{
    bool is_furnished =
        make_directory("/dev/pts") && make_directory("/dev/shm") &&
        mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "gid=5,mode=0620,ptmxmode=0666") == 0 &&
        mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777") == 0;
    return is_furnished && symlink("/proc/self/fd", "/dev/fd") == 0 &&
           symlink("/proc/self/fd/0", "/dev/stdin") == 0 &&
           symlink("/proc/self/fd/1", "/dev/stdout") == 0 &&
           symlink("/proc/self/fd/2", "/dev/stderr") == 0;
}

static bool switch_root(void)
{
    return chdir(ROOT) == 0 && mount(".", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 &&
           chdir("/") == 0;
}

static int build(struct fields request, const char *disk, struct queue *answer)
{
    struct lowers lowers = {.text = PLACES};
    int error = for_layers(request, add_lower, &lowers);
    if (error)
        return error;
    /* Without "discard": see freeze.c. */
    if (!mount_device(disk, DISK, "ext4", 0, "noinit_itable"))
        return fail(answer, DISK);
    if (disk_fd < 0)
        disk_fd = open(DISK, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (disk_fd < 0 || !make_upper(lowers.top))
        return fail(answer, UPPER);
    spare_release(WORK);
    if (!make_directory(ROOT) || !mount_overlay(&lowers))
        return fail(answer, "overlay");
    spare_hold(WORK);
    return 0;
}

/* A disk that another guest has written, to be read in a machine that does nothing else. */
int root_mount_disk(struct fields request, struct queue *answer)
{
    const char *disk = fields_get(request.bytes, request.length, "disk");
    if (is_entered || is_mounted(DISK))
        return EALREADY;
    if (!is_device(disk))
        return EINVAL;
    const unsigned long flags = MS_RDONLY | MS_NOEXEC;
    return mount_device(disk, DISK, "ext4", flags, "errors=remount-ro") ? 0 : fail(answer, DISK);
}

/* From here on there is no way back. */
static int enter(unsigned pids, struct queue *answer)
{
    is_entered = true;
    int error = crowd_limit(pids);
    if (error) {
        queue_field(answer, "failed=pids");
        return error;
    }
    if (!move_into_root("/dev") || !move_into_root("/sys") || !move_into_root("/proc") ||
        !switch_root())
        return fail(answer, ROOT);
    if (!furnish_devices())
        return fail(answer, "/dev");
    return run_directory_mount() ? 0 : fail(answer, RUN_DIRECTORY);
}

int root_enter(struct fields request, struct queue *answer)
{
    const char *disk = fields_get(request.bytes, request.length, "disk");
    const char *pids_text = fields_get(request.bytes, request.length, "pids");
    char *end = NULL;
    unsigned long pids = pids_text ? strtoul(pids_text, &end, 10) : 0;
    if (!is_device(disk) || !end || *end || pids < 1 || pids > PIDS_MAX)
        return is_entered ? EALREADY : EINVAL;
    int error = root_mount_layers(request, answer);
    if (!error)
        error = build(request, disk, answer);
    return error ? error : enter((unsigned)pids, answer);
}
