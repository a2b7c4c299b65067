/* What the parts of the agent that touch the world offer one another. */
#ifndef MAGS_SERVICES_H
#define MAGS_SERVICES_H

#include <signal.h>
#include <sys/types.h>

#include "session.h"

#define RUN_DIRECTORY "/run/mags"

extern const struct service exec_service, read_service, write_service, control_service,
    capture_service, freeze_service, dial_service, sftp_service, listen_service,
    accept_service, halt_service;

/* Monotonic time. */
int64_t now_ns(void);

/* The signals that the agent ignores and its children must not. */
void signals_ignored(sigset_t *signals);

/* Tell the execs that a process has ended. */
void exec_reaped(struct session *session, pid_t pid, int status);

/* Kill the process group of every exec that still runs. */
void exec_kill_all(struct session *session);

/* Start argv[0] in a session of its own with `ends` as descriptors 0, 1 and 2, of which the
 * first may be the session's terminal. Returns 0 or an errno. (program.c) */
int program_start(struct fields request, const int ends[3], bool has_terminal, pid_t *pid);

/* Serve SFTP on descriptors 0 and 1 until they end; returns an exit code. (sftp_server.c) */
int sftp_serve(const char *home);
/* Start a process that does. Returns 0 or an errno. */
int sftp_start(const int ends[3], pid_t *pid);

/* Hang up on a session whose terminal has gone, and on whoever was in its foreground; it is
 * killed when its leader has not ended after a while. (hangup.c) */
void hangup_begin(pid_t leader, pid_t foreground);
/* A process has ended. */
void hangup_reaped(pid_t pid);
/* Kill whose time is up, and wake when the next one's is. */
void hangup_watch(struct poll_set *set);

/* Read on, and drop, what comes from a pipe whose stream is over. It is this file's from now on;
 * of too many the oldest is closed. (leftover.c) */
void leftover_keep(int fd);
void leftover_watch(struct poll_set *set);
void leftover_pump(const struct poll_set *set);

/* In a process of the agent's own: keep of its descriptors these two, as 0 and 1, and
 * what it says goes to. (program.c) */
void stand_alone(int in, int out);

/* Mount the tmpfs RUN_DIRECTORY. */
bool run_directory_mount(void);

/* Lay a folder of that tmpfs over /uploads, if that is a folder. (uploads.c) */
bool uploads_cover(void);

/* Enter, in a process that is about to become a program, the group of those that
 * are limited in number, if there is one. (crowd.c) */
bool crowd_enter(void);

/* What all who ever were in that group have used of the CPU. False where there is none. */
bool crowd_measure(uint64_t *cpu_ns);

/* Let those stand still, or go on; whether they do stand still. (crowd.c) */
bool crowd_halt(bool is_halted);
bool crowd_is_halted(void);

/* Operations of `control`: 0 or an errno, and fields for the answer. */
int identity_set(struct fields request, struct queue *answer);
int identity_bind(struct fields request, struct queue *answer);
int processes_measure(struct queue *answer);
int uploads_show(struct fields request, struct queue *answer);

#endif
