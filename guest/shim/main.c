/* mags-shim PLAN_FD: owns one VM. Makes its namespaces, does the set-up of the
 * plan, says `ready`, and serves until the VM ends. docs/reference/wire.md is
 * the contract.
 */
#define _GNU_SOURCE
#include "journal.h"
#include "mounts.h"
#include "shim.h"
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

static struct shim shim;

static _Noreturn void refuse(int control, const struct failure *failure)
{
    struct queue fields = {0}, frame = {0};
    field_append(&fields, "error=%s", failure->text);
    if (shim.host_pid) /* for whoever has to wait for this process */
        field_append(&fields, "pid=%d", shim.host_pid);
    struct wire_header header = {.kind = WIRE_REPLY, .length = (uint32_t)queue_length(&fields)};
    queue_frame(&frame, &header, queue_head(&fields));
    if (control < 0 ||
        send(control, queue_head(&frame), queue_length(&frame), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        dprintf(2, "mags-shim: %s\n", failure->text);
    _exit(1);
}

/* Whoever calls this goes on as pid 1 of a new pid namespace, still a child of
 * the daemon; the process that was started exits. */
static bool make_namespaces(struct failure *failure)
{
    setsid();
    if (unshare(CLONE_NEWNS | CLONE_NEWIPC) < 0)
        return fail(failure, "cannot make namespaces: %m");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return fail(failure, "cannot make mounts private: %m");
    long pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        return fail(failure, "cannot make a pid namespace: %m");
    if (pid > 0)
        _exit(0);
    setsid();
    return true;
}

/* The old /proc still counts by the daemon's pid namespace. */
static bool learn_pid(struct failure *failure)
{
    char text[32];
    ssize_t length = readlink("/proc/self", text, sizeof text - 1);
    if (length <= 0)
        return fail(failure, "cannot read /proc/self: %m");
    text[length] = 0;
    shim.host_pid = atoi(text);
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0 ||
           fail(failure, "cannot mount /proc: %m");
}

/* By a relative path: the run directory's own may be too long for a socket. */
static bool listen_here(struct failure *failure)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "sock"};
    unlink(address.sun_path);
    shim.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t before = umask(0177);
    bool is_bound =
        shim.listener >= 0 &&
        bind(shim.listener, (struct sockaddr *)&address, sizeof address) == 0 &&
        listen(shim.listener, CONNECTIONS_MAX) == 0;
    umask(before);
    return is_bound || fail(failure, "cannot listen on sock: %m");
}

static bool open_events(struct failure *failure)
{
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_SETMASK, &children, NULL);
    signal(SIGPIPE, SIG_IGN);
    shim.children = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
    shim.fence = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    return (shim.children >= 0 && shim.fence >= 0) ||
           fail(failure, "cannot make event descriptors: %m");
}

static bool make_nonce(struct failure *failure)
{
    uint8_t bytes[NONCE_DIGITS / 2];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return fail(failure, "cannot get random bytes: %m");
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(shim.nonce + 2 * i, 3, "%02x", bytes[i]);
    return true;
}

/* The daemon's own stdio must not be held open by something that outlives it. */
static bool leave_stdio(struct failure *failure)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        return fail(failure, "cannot open /dev/null: %m");
    if (null > 2)
        close(null);
    return true;
}

static void say_ready(struct connection *control)
{
    struct queue fields = {0};
    field_append(&fields, "ok");
    field_append(&fields, "pid=%d", shim.host_pid);
    struct wire_header header = {.kind = WIRE_REPLY, .length = (uint32_t)queue_length(&fields)};
    connection_frame(control, &header, queue_head(&fields));
    queue_free(&fields);
}

static bool set_up(struct failure *failure)
{
    return make_namespaces(failure) && learn_pid(failure) && journal_open(failure) &&
           state_open(failure) && make_nonce(failure) && open_events(failure) &&
           mounts_run(&shim.plan, failure) && listen_here(failure) && leave_stdio(failure);
}

int main(int argc, char **argv)
{
    struct failure failure = {"usage: mags-shim PLAN_FD"};
    int plan;
    if (argc != 2 || !plan_number(argv[1], 0, &plan, NULL))
        refuse(-1, &failure);
    umask(022);
    if (!plan_read(plan, &shim.plan, &failure) || !set_up(&failure))
        refuse(shim.plan.control, &failure);
    close(plan);
    shim.engine.link = shim.engine.errors = -1;
    shim.is_accepting = true;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        shim.sockets[i] = -1;
    core_init(&shim.core, world_open(&shim), shim.plan.vm, shim.plan.epoch, shim.nonce);
    if (shim.plan.log_rate)
        durable_limit(&shim.core, shim.plan.log_rate, shim.plan.log_burst);
    if (shim.plan.resume >= 0 && !state_resume(shim.plan.resume, &shim.core, &failure))
        refuse(shim.plan.control, &failure);
    if (shim.plan.resume >= 0)
        close(shim.plan.resume);
    loop_connect(&shim, shim.plan.control, true);
    say_ready(&shim.core.connections[0]);
    loop_run(&shim);
    end_finish(&shim);
}
