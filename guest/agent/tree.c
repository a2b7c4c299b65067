#define _GNU_SOURCE
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "content.h"
#include "links.h"
#include "pax.h"

#define DEPTH_MAX 1024u
#define NAME "SCHILY.xattr."
#define OPAQUE "trusted.overlay.opaque"
#define CAPABILITY "security.capability"
#define USERS "user."

struct folder {
    int fd;
    struct queue names; /* each ended by NUL */
    char **sorted;
    size_t count, next;
    size_t path_length; /* of the path with this folder, without a slash */
};

struct tree {
    int top; /* -1: it has been begun with */
    struct folder *folders;
    size_t depth, capacity;
    struct queue path; /* relative, ended by NUL */
    struct queue records;
    struct links links;
    struct content content;
};

const char *tree_place(const struct tree *tree) { return (const char *)queue_head(&tree->path); }

/* --- paths and folders --- */

static void cut_path(struct tree *tree, size_t length)
{
    tree->path.tail = tree->path.head + length;
    queue_append(&tree->path, "", 1);
}

static void extend_path(struct tree *tree, const char *name)
{
    tree->path.tail--;
    queue_append(&tree->path, "/", 1);
    queue_append(&tree->path, name, strlen(name) + 1);
}

static int compare(const void *one, const void *other)
{
    return strcmp(*(char *const *)one, *(char *const *)other);
}

/* Read the names of a folder. 0 or an errno. */
static int list(struct folder *folder)
{
    int copy = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = copy < 0 ? NULL : fdopendir(copy);
    if (!stream) {
        int error = errno;
        if (copy >= 0)
            close(copy);
        return error;
    }
    errno = 0;
    for (struct dirent *entry; (entry = readdir(stream)); errno = 0) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        queue_append(&folder->names, entry->d_name, strlen(entry->d_name) + 1);
        folder->count++;
    }
    int error = errno;
    closedir(stream);
    return error;
}

/* In one order whatever the file system's is: the same tree gives the same bytes. */
static void sort(struct folder *folder)
{
    folder->sorted = calloc(folder->count + 1, sizeof *folder->sorted);
    if (!folder->sorted)
        abort();
    char *name = (char *)folder->names.bytes + folder->names.head;
    for (size_t i = 0; i < folder->count; i++, name += strlen(name) + 1)
        folder->sorted[i] = name;
    qsort(folder->sorted, folder->count, sizeof *folder->sorted, compare);
}

static void close_folder(struct folder *folder)
{
    close(folder->fd);
    free(folder->sorted);
    queue_free(&folder->names);
}

/* Go into a folder that is open at the end of the path, and own `fd`. 0 or an errno. */
static int push(struct tree *tree, int fd)
{
    struct folder folder = {.fd = fd, .path_length = queue_length(&tree->path) - 1};
    int error = tree->depth < DEPTH_MAX ? list(&folder) : ENAMETOOLONG;
    if (error) {
        close_folder(&folder);
        return error;
    }
    sort(&folder);
    if (tree->depth == tree->capacity) {
        tree->capacity = tree->capacity ? 2 * tree->capacity : 16;
        tree->folders = realloc(tree->folders, tree->capacity * sizeof *tree->folders);
        if (!tree->folders)
            abort();
    }
    tree->folders[tree->depth++] = folder;
    return 0;
}

/* --- attributes --- */

static bool is_kept(const char *name, bool is_folder)
{
    if (is_folder && strcmp(name, OPAQUE) == 0)
        return true;
    return strncmp(name, USERS, sizeof USERS - 1) == 0 || (!is_folder && strcmp(name, CAPABILITY) == 0);
}

static int record_attribute(struct tree *tree, int fd, const char *name)
{
    char key[sizeof NAME + XATTR_NAME_MAX];
    static char value[XATTR_SIZE_MAX];
    ssize_t length = fgetxattr(fd, name, value, sizeof value);
    if (length < 0)
        return errno;
    snprintf(key, sizeof key, NAME "%s", name);
    pax_record(&tree->records, key, value, (size_t)length);
    return 0;
}

/* Add the extended attributes that a layer may hold to the entry to come. 0 or an errno. */
static int record_attributes(struct tree *tree, int fd, bool is_folder)
{
    static char names[XATTR_LIST_MAX];
    ssize_t length = flistxattr(fd, names, sizeof names);
    if (length < 0)
        return errno == ENOTSUP ? 0 : errno;
    int error = 0;
    for (char *name = names; !error && name < names + length; name += strlen(name) + 1)
        if (is_kept(name, is_folder))
            error = record_attribute(tree, fd, name);
    return error;
}

/* --- entries --- */

static struct pax_entry describe(const struct tree *tree, const struct stat *status)
{
    return (struct pax_entry){
        .path = tree_place(tree),
        .mode = status->st_mode,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .mtime_s = status->st_mtime,
    };
}

/* Append a folder and go into it. Owns `fd`; 0 or an errno. */
static int enter(struct tree *tree, struct queue *out, const struct stat *status, int fd)
{
    struct pax_entry entry = describe(tree, status);
    entry.type = PAX_DIRECTORY;
    int error = record_attributes(tree, fd, true);
    if (error) {
        close(fd);
        return error;
    }
    pax_entry(out, &entry, &tree->records);
    return push(tree, fd);
}

static int add_file(struct tree *tree, struct queue *out, const struct stat *status, int fd)
{
    struct pax_entry entry = describe(tree, status);
    entry.type = PAX_REGULAR;
    entry.size = (uint64_t)status->st_size;
    if (status->st_nlink > 1)
        entry.target = links_meet(&tree->links, status->st_ino, entry.path);
    if (entry.target) {
        close(fd);
        entry.type = PAX_HARD_LINK;
        entry.size = 0;
        pax_entry(out, &entry, &tree->records);
        return 0;
    }
    int error = record_attributes(tree, fd, false);
    if (error)
        close(fd);
    return error ? error : content_begin(&tree->content, out, &entry, &tree->records, fd);
}

/* What is neither file nor folder: a link, a FIFO, or a whiteout. What a layer cannot
 * hold becomes one: at least it hides what was there before. */
static int add_special(struct tree *tree, struct queue *out, const struct stat *status, int at,
                       const char *name)
{
    static char target[65536];
    struct pax_entry entry = describe(tree, status);
    switch (status->st_mode & S_IFMT) {
    case S_IFLNK: {
        ssize_t length = readlinkat(at, name, target, sizeof target - 1);
        if (length < 0)
            return errno;
        target[length] = 0;
        entry.type = PAX_SYMLINK;
        entry.target = target;
        break;
    }
    case S_IFIFO:
        entry.type = PAX_FIFO;
        break;
    default:
        entry.mode = 0;
        entry.type = PAX_CHARACTER_DEVICE;
        break;
    }
    pax_entry(out, &entry, &tree->records);
    return 0;
}

static int add(struct tree *tree, struct queue *out, int at, const char *name)
{
    struct stat status;
    if (fstatat(at, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno;
    bool is_folder = S_ISDIR(status.st_mode);
    if (!is_folder && !S_ISREG(status.st_mode))
        return add_special(tree, out, &status, at, name);
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | (is_folder ? O_DIRECTORY : 0);
    int fd = openat(at, name, flags);
    if (fd < 0)
        return errno;
    return is_folder ? enter(tree, out, &status, fd) : add_file(tree, out, &status, fd);
}

/* --- the whole --- */

struct tree *tree_open(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct tree *tree = calloc(1, sizeof *tree);
    if (!tree)
        abort();
    tree->top = fd;
    tree->content.fd = -1;
    queue_append(&tree->path, ".", sizeof ".");
    return tree;
}

/* Append the folder itself. 0 or an errno. */
static int begin(struct tree *tree, struct queue *out)
{
    struct stat status;
    int fd = tree->top;
    tree->top = -1;
    if (fstat(fd, &status) == 0)
        return enter(tree, out, &status, fd);
    int error = errno;
    close(fd);
    return error;
}

/* Append what comes next. 0 or an errno. */
static int next(struct tree *tree, struct queue *out, bool *is_done)
{
    if (tree->top >= 0)
        return begin(tree, out);
    if (!tree->depth) {
        pax_end(out);
        *is_done = true;
        return 0;
    }
    struct folder *folder = &tree->folders[tree->depth - 1];
    cut_path(tree, folder->path_length);
    if (folder->next == folder->count) {
        close_folder(folder);
        tree->depth--;
        return 0;
    }
    const char *name = folder->sorted[folder->next++];
    extend_path(tree, name);
    return add(tree, out, folder->fd, name);
}

int tree_read(struct tree *tree, struct queue *out, bool *is_done)
{
    *is_done = false;
    return tree->content.fd >= 0 ? content_read(&tree->content, out) : next(tree, out, is_done);
}

void tree_close(struct tree *tree)
{
    if (tree->top >= 0)
        close(tree->top);
    while (tree->depth)
        close_folder(&tree->folders[--tree->depth]);
    free(tree->folders);
    content_end(&tree->content);
    links_free(&tree->links);
    queue_free(&tree->path);
    queue_free(&tree->records);
    free(tree);
}
