#define _GNU_SOURCE
#include "engine.h"

#include "../wire/signals.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif
#define LINK_BUFFER_BYTES (1 << 20)
#define ERRORS_SHOWN 800u /* of each end of stderr, in the description */

/* What the child tells of a step that failed before exec. */
struct report {
    int error;
    char step[60];
};

/* The arguments with `@PID@` replaced; never freed, they live until exec. */
static char **expand(char *const *arguments, size_t count, pid_t host_pid)
{
    char **expanded = calloc(count + 1, sizeof *expanded);
    for (size_t i = 0; expanded && i < count; i++) {
        char *place = strstr(arguments[i], "@PID@");
        expanded[i] = arguments[i];
        if (place && asprintf(&expanded[i], "%.*s%d%s", (int)(place - arguments[i]), arguments[i],
                              host_pid, place + strlen("@PID@")) < 0)
            return NULL;
    }
    return expanded;
}

static void give_up(int reports, const char *step)
{
    struct report report = {.error = errno};
    snprintf(report.step, sizeof report.step, "%s", step);
    _exit(write(reports, &report, sizeof report) == sizeof report ? 127 : 126);
}

static bool set_limit(int resource, uint64_t value)
{
    struct rlimit limit = {value, value};
    return setrlimit(resource, &limit) == 0;
}

static bool set_limits(const struct plan *plan)
{
    /* An ignored signal stays so over exec: a write beyond the limit fails with EFBIG. */
    if (plan->file_size &&
        (signal(SIGXFSZ, SIG_IGN) == SIG_ERR || !set_limit(RLIMIT_FSIZE, plan->file_size)))
        return false;
    return !plan->engine_uid || set_limit(RLIMIT_CORE, 0);
}

/* All go at exec but the engine's own channels and the passed ones. */
static bool keep_passed(const struct plan *plan)
{
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
        return false;
    for (size_t i = 0; i < plan->passed_count; i++)
        if (fcntl(plan->passed[i], F_SETFD, 0) < 0)
            return false;
    return true;
}

static bool become_user(uid_t uid, gid_t gid)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {{0}};
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            return false;
    /* The change of uid clears all capabilities but the inheritable ones. */
    return setgroups(0, NULL) == 0 && setresgid(gid, gid, gid) == 0 &&
           setresuid(uid, uid, uid) == 0 && syscall(SYS_capset, &header, none) == 0 &&
           prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

/* The kernel forgets the death signal when the uid changes, so this comes after it;
 * and of a parent that has died before it says nothing. */
static bool hang_on(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return false;
    errno = ESRCH;
    return getppid() == parent;
}

/* In the child: become the engine. Its life hangs on the shim's. */
static void become(const struct plan *plan, char **arguments, int link, int errors, int reports,
                   pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signals_reset();
    for (size_t i = 0; i < plan->cgroup_count; i++)
        if (write(plan->cgroups[i], "0\n", 2) != 2)
            give_up(reports, "joining a cgroup");
    if (setsid() < 0)
        give_up(reports, "setting up its process");
    if (dup2(link, 0) < 0 || dup2(link, 1) < 0 || dup2(errors, 2) < 0)
        give_up(reports, "setting its descriptors");
    if (!set_limits(plan))
        give_up(reports, "setting its limits");
    if (!keep_passed(plan))
        give_up(reports, "closing descriptors");
    if (plan->engine_root && (chroot(plan->engine_root) < 0 || chdir("/") < 0))
        give_up(reports, "entering its root");
    if (plan->engine_uid && !become_user(plan->engine_uid, plan->engine_gid))
        give_up(reports, "becoming its user");
    if (!hang_on(parent))
        give_up(reports, "hanging on the shim");
    execve(arguments[0], arguments, plan->environment);
    give_up(reports, arguments[0]);
}

static bool open_channels(int link[2], int errors[2], int reports[2], struct failure *failure)
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, link) < 0 ||
        pipe2(errors, O_CLOEXEC) < 0 || pipe2(reports, O_CLOEXEC) < 0)
        return fail(failure, "cannot make the engine's channels: %m");
    int size = LINK_BUFFER_BYTES;
    for (int i = 0; i < 2; i++)
        setsockopt(link[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    fcntl(link[0], F_SETFL, O_NONBLOCK); /* the two ends do not share this flag */
    fcntl(errors[0], F_SETFL, O_NONBLOCK);
    return true;
}

static bool spawn(struct engine *engine, const struct plan *plan, pid_t host_pid,
                  struct failure *failure)
{
    int link[2], errors[2], reports[2];
    char **arguments = expand(plan->arguments, plan->argument_count, host_pid);
    if (!arguments)
        return fail(failure, "no memory for the engine's arguments");
    if (!open_channels(link, errors, reports, failure))
        return false;
    pid_t parent = getpid();
    engine->pid = fork();
    if (engine->pid < 0)
        return fail(failure, "cannot fork: %m");
    if (engine->pid == 0)
        become(plan, arguments, link[1], errors[1], reports[1], parent);
    close(link[1]);
    close(errors[1]);
    close(reports[1]);
    engine->link = link[0];
    engine->errors = errors[0];
    /* The pipe closes itself at exec, so that this waits no longer than it takes. */
    struct report report;
    ssize_t count;
    while ((count = read(reports[0], &report, sizeof report)) < 0 && errno == EINTR)
        continue;
    close(reports[0]);
    if (count != (ssize_t)sizeof report)
        return true;
    errno = report.error;
    return fail(failure, "the engine could not be started: %.60s: %m", report.step);
}

bool engine_start(struct engine *engine, const struct plan *plan, pid_t host_pid,
                  struct failure *failure)
{
    bool is_started = spawn(engine, plan, host_pid, failure);
    for (size_t i = 0; i < plan->passed_count; i++)
        close(plan->passed[i]);
    return is_started;
}

bool engine_read_errors(struct engine *engine)
{
    uint8_t buffer[4096];
    ssize_t count = read(engine->errors, buffer, sizeof buffer);
    if (count < 0)
        return errno == EAGAIN || errno == EINTR;
    for (ssize_t i = 0; i < count; i++) {
        if (engine->errors_total < TAIL_BYTES)
            engine->first[engine->errors_total] = buffer[i];
        engine->last[engine->errors_total % TAIL_BYTES] = buffer[i];
        engine->errors_total++;
    }
    return count > 0;
}

void engine_reap(struct engine *engine)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != engine->pid)
            continue;
        engine->has_ended = true;
        engine->status = status;
    }
}

/* Append up to ERRORS_SHOWN of the bytes from..to of stderr. */
static size_t append_errors(const struct engine *engine, uint64_t from, uint64_t to, char *text,
                            size_t size)
{
    size_t length = 0;
    for (uint64_t i = from; i < to && length + 1 < size; i++) {
        uint8_t byte = i < TAIL_BYTES ? engine->first[i] : engine->last[i % TAIL_BYTES];
        text[length++] = byte ? (char)byte : ' ';
    }
    text[length] = 0;
    return length;
}

void engine_describe(const struct engine *engine, char *text, size_t size)
{
    if (WIFSIGNALED(engine->status))
        snprintf(text, size, "the engine was killed by signal %d", WTERMSIG(engine->status));
    else
        snprintf(text, size, "the engine exited with code %d", WEXITSTATUS(engine->status));
    uint64_t total = engine->errors_total;
    if (!total)
        return;
    size_t length = strlen(text);
    length += (size_t)snprintf(text + length, size - length, ": ");
    uint64_t first = total < ERRORS_SHOWN ? total : ERRORS_SHOWN;
    length += append_errors(engine, 0, first, text + length, size - length);
    if (first == total)
        return;
    uint64_t from = total - first < ERRORS_SHOWN ? first : total - ERRORS_SHOWN;
    if (from > first)
        length += (size_t)snprintf(text + length, size - length, "\n[...]\n");
    append_errors(engine, from, total, text + length, size - length);
}
