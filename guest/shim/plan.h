/* The plan of one VM, as the daemon wrote it into a memfd. Owns the parsing;
 * mounts.c, engine.c and confine.c do what it says. */
#ifndef MAGS_SHIM_PLAN_H
#define MAGS_SHIM_PLAN_H

#include "failure.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PLAN_CGROUPS_MAX 16
#define PLAN_CODES_MAX 32
#define PLAN_PASSED_MAX 64

/* A step of the set-up, in the order in which the plan has them. */
struct plan_step {
    const char *name;
    const char *value;
};

struct plan {
    const char *vm, *epoch;
    int control;
    int freezer;              /* -1: none */
    const char *frozen, *thawed;
    int freezer_events;       /* -1: none */
    int weight;               /* -1: none */
    const char *claimed_weight;
    uint64_t log_rate, log_burst; /* bytes a second, bytes; 0: no limit */
    int out_of_memory, processes; /* -1: none */
    int monitor;                  /* of the engine, to have it run; -1: none */
    int resume;                   /* a state file to go on from; -1: none */
    uid_t uid;
    char **arguments, **environment; /* NULL ended */
    size_t argument_count, environment_count;
    struct plan_step *steps;
    size_t step_count;
    int cgroups[PLAN_CGROUPS_MAX];
    size_t cgroup_count;
    int engine_failed[PLAN_CODES_MAX];
    size_t engine_failed_count;
    int passed[PLAN_PASSED_MAX]; /* the engine's, under their numbers */
    size_t passed_count;
    const char *engine_root; /* NULL: the host's */
    uid_t engine_uid;        /* 0: it stays root */
    gid_t engine_gid;
    uint64_t file_size;      /* bytes; 0: no limit */
};

/* Read the plan from `fd`. On failure `control` may be known already, or -1. */
bool plan_read(int fd, struct plan *plan, struct failure *failure);

/* A number at `text`, followed by `end` (NUL or ':'); *rest is what comes after. */
bool plan_number(const char *text, char end, int *number, const char **rest);

#endif
