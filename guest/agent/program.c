/* Starting a program: what an OPEN of `exec` asks for becomes a process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "services.h"

#define DEFAULT_DIRECTORY "/root"
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Every value of a repeated key, ended by NULL; the strings are the request's. */
static char **gather(struct fields request, const char *key)
{
    size_t count = 0;
    char **values = calloc(request.length + 1, sizeof *values);
    if (!values)
        abort();
    size_t cursor = 0;
    for (const char *field; (field = fields_next(request.bytes, request.length, &cursor));) {
        const char *value = field_value(field, key);
        if (value)
            values[count++] = (char *)(uintptr_t)value;
    }
    return values;
}

static const char *path_of(char *const *environment)
{
    for (; *environment; environment++)
        if (strncmp(*environment, "PATH=", 5) == 0)
            return *environment + 5;
    return DEFAULT_PATH;
}

/* Find a program as a shell in directory `at` would. Returns 0 or an errno. */
static int resolve(int at, const char *name, const char *path, char found[PATH_MAX])
{
    if (strchr(name, '/'))
        return snprintf(found, PATH_MAX, "%s", name) < PATH_MAX ? 0 : ENAMETOOLONG;
    int error = ENOENT;
    for (const char *from = path; *name; from++) {
        int length = (int)strcspn(from, ":");
        const char *joint = length ? "/" : "./";
        struct stat status;
        if (snprintf(found, PATH_MAX, "%.*s%s%s", length, from, joint, name) < PATH_MAX &&
            fstatat(at, found, &status, 0) == 0 && S_ISREG(status.st_mode)) {
            if (faccessat(at, found, X_OK, 0) == 0)
                return 0;
            error = EACCES;
        }
        from += length;
        if (!*from)
            break;
    }
    return error;
}

static int spawn(const char *program, int at, const int ends[3], char *const *arguments,
                 char *const *environment, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, ignored;
    sigemptyset(&none);
    signals_ignored(&ignored); /* not every signal: each costs a system call */
    int error = posix_spawnattr_init(&attributes);
    if (error)
        return error;
    error = posix_spawn_file_actions_init(&actions);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &ignored);
    for (int i = 0; i < 3 && !error; i++)
        error = posix_spawn_file_actions_adddup2(&actions, ends[i], i);
    if (!error)
        error = posix_spawn_file_actions_addfchdir_np(&actions, at);
    if (!error)
        error = posix_spawn(pid, program, &actions, &attributes, arguments, environment);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

int program_start(struct fields request, const int ends[3], pid_t *pid)
{
    const char *directory = fields_get(request.bytes, request.length, "cwd");
    int at = open(directory && *directory ? directory : DEFAULT_DIRECTORY,
                  O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0)
        at = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0)
        return errno;
    char **arguments = gather(request, "arg");
    char **environment = gather(request, "env");
    char program[PATH_MAX];
    int error = resolve(at, arguments[0], path_of(environment), program);
    if (!error)
        error = spawn(program, at, ends, arguments, environment, pid);
    free(arguments);
    free(environment);
    close(at);
    return error;
}
