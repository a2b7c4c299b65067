/* The core's host: files, freezer, fence, engine and clocks as they really are. */
#define _GNU_SOURCE
#include "confine.h"
#include "counter.h"
#include "journal.h"
#include "shim.h"
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static struct shim *world;

static uint64_t wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool start_engine(char *error, size_t size)
{
    struct failure failure;
    bool is_started = engine_start(&world->engine, &world->plan, world->host_pid, &failure) &&
                      confine(world->plan.uid, &failure);
    for (size_t i = 0; i < world->plan.cgroup_count; i++)
        close(world->plan.cgroups[i]);
    if (!is_started)
        snprintf(error, size, "%s", failure.text);
    return is_started;
}

/* Said blindly: an engine that runs already, or knows the first word already, says so, and
 * what it says is not read. */
static void run_engine(void)
{
    static const char words[] = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n";
    if (world->plan.monitor >= 0)
        send(world->plan.monitor, words, sizeof words - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static bool has_freezer(void) { return world->plan.freezer >= 0; }

static bool freezer_write(bool is_frozen)
{
    const char *word = is_frozen ? world->plan.frozen : world->plan.thawed;
    ssize_t length = (ssize_t)strlen(word);
    return pwrite(world->plan.freezer, word, (size_t)length, 0) == length;
}

/* v2 tells in another file. v1 says FREEZING until the last task has stopped; what
 * cannot be read there is taken to be done. */
static bool freezer_is_done(void)
{
    if (world->plan.freezer_events >= 0)
        return counter_read(world->plan.freezer_events, "frozen") == 1;
    char state[32];
    ssize_t count = pread(world->plan.freezer, state, sizeof state, 0);
    return count < 8 || memcmp(state, "FREEZING", 8) != 0;
}

/* One that cannot be raised makes the VM slower, and is no reason to be without it. */
static void raise_weight(void)
{
    const char *words = world->plan.claimed_weight;
    if (world->plan.weight >= 0 && pwrite(world->plan.weight, words, strlen(words), 0) >= 0)
        world->plan.weight = -1;
}

static bool set_fence(uint64_t after_ms)
{
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(after_ms / 1000),
                                           .tv_nsec = (long)(after_ms % 1000) * 1000000}};
    return timerfd_settime(world->fence, 0, &when, NULL) == 0;
}

static bool is_out_of_memory(void) { return end_is_out_of_memory(world); }

const struct host *world_open(struct shim *shim)
{
    static const struct host host = {
        .wall_ns = wall_ns,
        .journal_append = journal_append,
        .journal_end = journal_end,
        .save_durable = state_save,
        .save_numbers = state_save_numbers,
        .run_engine = run_engine,
        .start_engine = start_engine,
        .has_freezer = has_freezer,
        .freezer_write = freezer_write,
        .freezer_is_done = freezer_is_done,
        .raise_weight = raise_weight,
        .set_fence = set_fence,
        .is_out_of_memory = is_out_of_memory,
    };
    world = shim;
    return &host;
}
