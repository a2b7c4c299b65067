/* Starting a program: what an OPEN of `exec` asks for becomes a process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "services.h"

#define STACK_BYTES (16 * 1024)
#define FDS_MAX 8192 /* more than all streams have together */
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

struct launch {
    const char *program;
    int at;
    const int *ends;
    bool has_terminal;
    char *const *arguments, *const *environment;
    int error; /* why it did not become the program */
};

/* The child, in the agent's memory while the agent waits. */
static int become(void *state)
{
    struct launch *launch = state;
    sigset_t none, ignored;
    sigemptyset(&none);
    signals_ignored(&ignored); /* not every signal: each costs a system call */
    sigaddset(&ignored, SIGCHLD);
    for (int number = 1; number < NSIG; number++)
        if (sigismember(&ignored, number) == 1)
            signal(number, SIG_DFL);
    bool is_ready = setsid() >= 0 && crowd_enter();
    for (int i = 0; i < 3 && is_ready; i++)
        is_ready = dup2(launch->ends[i], i) == i;
    if (is_ready && launch->has_terminal)
        is_ready = ioctl(STDIN_FILENO, TIOCSCTTY, 0) == 0;
    if (is_ready && fchdir(launch->at) == 0 && sigprocmask(SIG_SETMASK, &none, NULL) == 0)
        execve(launch->program, launch->arguments, launch->environment);
    launch->error = errno;
    _exit(127);
}

/* As posix_spawn does it, which has no place for crowd_enter. Returns 0 or an errno. */
static int spawn(struct launch *launch, pid_t *pid)
{
    static _Alignas(16) char stack[STACK_BYTES];
    *pid = clone(become, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, launch);
    if (*pid < 0)
        return errno;
    if (launch->error)
        waitpid(*pid, NULL, 0);
    return launch->error;
}

void stand_alone(int in, int out)
{
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
        _exit(1);
    if (syscall(SYS_close_range, 3, ~0u, 0) == 0)
        return;
    for (int fd = 3; fd < FDS_MAX; fd++) /* a kernel may not know it */
        close(fd);
}

int program_start(struct fields request, const int ends[3], bool has_terminal, pid_t *pid)
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
    struct launch launch = {program, at, ends, has_terminal, arguments, environment, 0};
    const char *name = fields_get(request.bytes, request.length, "name");
    if (name)
        arguments[0] = (char *)(uintptr_t)name;
    if (!error)
        error = spawn(&launch, pid);
    free(arguments);
    free(environment);
    close(at);
    return error;
}
