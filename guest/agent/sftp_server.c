/* Stream `sftp`: the SFTP server, a process of the agent's own. It needs no program of the
 * guest's, and is none of those who are limited in number. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "services.h"
#include "sftp.h"

#define HOME "/root"

static bool send_all(struct queue *to_send)
{
    while (queue_length(to_send)) {
        ssize_t put = write(STDOUT_FILENO, queue_head(to_send), queue_length(to_send));
        if (put < 0 && errno != EINTR)
            return false;
        queue_take(to_send, put > 0 ? (size_t)put : 0);
    }
    return true;
}

int sftp_serve(const char *home)
{
    struct sftp sftp = {.home = home};
    struct queue received = {0}, to_send = {0};
    umask(022);
    if (chdir(home) < 0 && chdir("/") < 0)
        return 1;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, queue_reserve(&received, WIRE_PAYLOAD_MAX),
                           WIRE_PAYLOAD_MAX);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got == 0 ? 0 : 1;
        queue_commit(&received, (size_t)got);
        int answered;
        while ((answered = sftp_answer(&sftp, &received, &to_send)) > 0)
            if (!send_all(&to_send))
                return 1;
        if (answered < 0)
            return 1;
    }
}

int sftp_start(const int ends[3], pid_t *pid)
{
    *pid = fork();
    if (*pid < 0)
        return errno;
    if (*pid)
        return 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    stand_alone(ends[0], ends[1]);
    _exit(sftp_serve(HOME));
}
