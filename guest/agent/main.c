/* mags-agent: the first process of a guest. Owns the start, the loop and the end;
 * what happens on the link is session.h's, what streams do is services.h's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../wire/signals.h"
#include "machine.h"

static struct session session;
static struct poll_set set;
static volatile sig_atomic_t has_child_ended;

static void on_child(int number)
{
    (void)number;
    has_child_ended = 1;
}

/* The guest ends with its first process. */
static _Noreturn void end(const char *why, int code)
{
    fprintf(stderr, "mags-agent: %s\n", why);
    exec_kill_all(&session);
    if (machine_is_ours())
        machine_end();
    _exit(code);
}

const struct service *service_find(const char *word)
{
    static const struct service *const all[] = {
        &exec_service,    &read_service,   &write_service, &control_service,
        &capture_service, &freeze_service, &dial_service,  &sftp_service,
        &listen_service,  &accept_service, &halt_service,
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(all[i]->word, word) == 0)
            return all[i];
    return NULL;
}

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Find the link and put it out of the children's way. */
static bool open_link(int *in, int *out)
{
    *in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
    *out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (*in < 0 || *out < 0 || null < 0)
        return false;
    bool is_open = fcntl(*in, F_SETFL, O_NONBLOCK) == 0 && fcntl(*out, F_SETFL, O_NONBLOCK) == 0 &&
                   dup2(null, STDIN_FILENO) == STDIN_FILENO &&
                   dup2(null, STDOUT_FILENO) == STDOUT_FILENO;
    close(null);
    return is_open;
}

void signals_ignored(sigset_t *signals)
{
    static const int all[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGPIPE,
                              SIGTERM, SIGUSR1, SIGUSR2, SIGALRM};
    sigemptyset(signals);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        sigaddset(signals, all[i]);
}

/* Nothing that a guest's process may send ends its first one, but SIGKILL. SIGCHLD
 * comes while we wait and at no other time. */
static void set_signals(sigset_t *while_waiting)
{
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP};
    sigset_t ignored, blocked;
    signals_reset();
    signals_ignored(&ignored);
    for (int number = 1; number < NSIG; number++)
        if (sigismember(&ignored, number) == 1)
            signal(number, SIG_IGN);
    sigaction(SIGCHLD, &action, NULL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    sigemptyset(while_waiting);
}

bool run_directory_mount(void)
{
    bool is_there = mkdir("/run", 0755) == 0 || errno == EEXIST;
    is_there = is_there && (mkdir(RUN_DIRECTORY, 0755) == 0 || errno == EEXIST);
    is_there = is_there && mount("mags", RUN_DIRECTORY, "tmpfs", MS_NOSUID | MS_NODEV,
                                 "mode=0755,size=64m") == 0;
    return is_there && uploads_cover();
}

/* runsc lays a tmpfs over an empty /tmp: it would take memory, and no workspace would keep it. */
static void uncover_tmp(void)
{
    if (getpid() == 1)
        umount2("/tmp", MNT_DETACH);
}

/* Begin in a guest that was made for us. NULL, or what went wrong. */
static const char *settle(int *in, int *out)
{
    if (!open_link(in, out))
        return "no link";
    if (!run_directory_mount())
        return strerror(errno);
    uncover_tmp();
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    return NULL;
}

static void reap(void)
{
    has_child_ended = 0;
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        exec_reaped(&session, pid, status);
}

static void wait_for_something(const sigset_t *while_waiting)
{
    session_watch(&session, &set);
    hangup_watch(&set);
    leftover_watch(&set);
    struct timespec patience, *timeout = NULL;
    if (set.wake_ns >= 0) {
        int64_t left_ns = set.wake_ns - now_ns();
        left_ns = left_ns > 0 ? left_ns : 0;
        patience = (struct timespec){.tv_sec = left_ns / 1000000000,
                                     .tv_nsec = left_ns % 1000000000};
        timeout = &patience;
    }
    if (ppoll(set.entries, set.count, timeout, while_waiting) < 0) {
        if (errno != EINTR)
            end(strerror(errno), 1);
        for (size_t i = 0; i < set.count; i++)
            set.entries[i].revents = 0;
    }
}

static void step(const sigset_t *while_waiting)
{
    wait_for_something(while_waiting);
    if (set.entries[0].revents && !session_read(&session))
        end("the link has ended", 0);
    const char *offence = session_handle(&session);
    if (offence)
        end(offence, 1);
    if (has_child_ended)
        reap();
    session_pump(&session, &set);
    leftover_pump(&set);
    if (!session_flush(&session))
        end("the link has ended", 0);
    if (session.is_ending && !queue_length(&session.to_send))
        end("powered off", 0);
}

int main(int count, char **arguments)
{
    int in = -1, out = -1;
    sigset_t while_waiting;
    if (count == 3 && strcmp(arguments[1], "sftp") == 0) /* to be tried without a guest */
        return sftp_serve(arguments[2]);
    machine_recognise(count ? arguments[0] : "");
    set_signals(&while_waiting);
    umask(022);
    const char *why = chdir("/") < 0 ? strerror(errno) : NULL;
    if (!why)
        why = machine_is_ours() ? machine_boot(&in) : settle(&in, &out);
    if (why)
        end(why, 1);
    session_start(&session, in, machine_is_ours() ? in : out);
    for (;;)
        step(&while_waiting);
}
