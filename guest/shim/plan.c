#define _GNU_SOURCE
#include "plan.h"

#include "bucket.h"
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLAN_BYTES_MAX (4u << 20)
#define NOBODY 65534
#define PASSED_MIN 3 /* below are the engine's own channels */

bool fail(struct failure *failure, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure->text, sizeof failure->text, format, arguments);
    va_end(arguments);
    return false;
}

bool plan_number(const char *text, char end, int *number, const char **rest)
{
    char *after;
    errno = 0;
    long value = strtol(text, &after, 10);
    if (errno || *text < '0' || *text > '9' || *after != end || value > INT_MAX)
        return false;
    *number = (int)value;
    if (rest)
        *rest = end ? after + 1 : after;
    return true;
}

static bool parse_freezer(struct plan *plan, const char *value)
{
    const char *words;
    if (!plan_number(value, ':', &plan->freezer, &words))
        return false;
    char *separator = strchr(words, ':');
    if (!separator)
        return false;
    plan->frozen = strndup(words, (size_t)(separator - words));
    plan->thawed = separator + 1;
    return plan->frozen != NULL;
}

static bool parse_weight(struct plan *plan, const char *value)
{
    return plan_number(value, ':', &plan->weight, &plan->claimed_weight);
}

static bool is_size(uint64_t bytes, uint64_t least)
{
    return least <= bytes && bytes <= BUCKET_MAX;
}

static bool parse_log_rate(struct plan *plan, const char *value)
{
    char *end;
    plan->log_rate = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != ':' || end[1] < '0' || end[1] > '9')
        return false;
    plan->log_burst = strtoull(end + 1, &end, 10);
    return !*end && is_size(plan->log_rate, 1) && is_size(plan->log_burst, LOG_BURST_MIN);
}

static bool parse_passed(struct plan *plan, const char *value)
{
    int fd;
    if (plan->passed_count == PLAN_PASSED_MAX || !plan_number(value, 0, &fd, NULL))
        return false;
    if (fd < PASSED_MIN || fcntl(fd, F_GETFD) < 0)
        return false;
    plan->passed[plan->passed_count++] = fd;
    return true;
}

static bool parse_root(struct plan *plan, const char *value)
{
    plan->engine_root = value;
    return *value;
}

/* Root is what this field is there to leave: it has no other way of being asked for. */
static bool parse_user(struct plan *plan, const char *value)
{
    int uid, gid;
    const char *rest;
    if (!plan_number(value, ':', &uid, &rest) || !plan_number(rest, 0, &gid, NULL))
        return false;
    plan->engine_uid = (uid_t)uid;
    plan->engine_gid = (gid_t)gid;
    return uid && gid;
}

static bool parse_file_size(struct plan *plan, const char *value)
{
    char *end;
    plan->file_size = strtoull(value, &end, 10);
    return *value >= '0' && *value <= '9' && !*end && plan->file_size &&
           plan->file_size <= INT64_MAX;
}

static bool is_step(const char *name)
{
    static const char *const names[] = {"hold", "netns",   "tmpfs", "proc", "hide",   "mkdir",
                                        "copy", "symlink", "layer", "disk", "overlay"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

/* Parse a field whose value is more than a number. */
static bool parse_composed_field(struct plan *plan, const char *name, const char *value,
                                 bool *is_known)
{
    static const struct {
        const char *name;
        bool (*parse)(struct plan *plan, const char *value);
    } fields[] = {
        {"freezer", parse_freezer},     {"weight", parse_weight}, {"log_rate", parse_log_rate},
        {"pass", parse_passed},         {"root", parse_root},     {"user", parse_user},
        {"file_size", parse_file_size},
    };
    *is_known = true;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(name, fields[i].name) == 0)
            return fields[i].parse(plan, value);
    *is_known = false;
    return false;
}

static bool parse_number_field(struct plan *plan, const char *name, const char *value,
                               bool *is_known)
{
    int number;
    *is_known = true;
    if (!plan_number(value, 0, &number, NULL))
        number = -1;
    if (strcmp(name, "control") == 0)
        plan->control = number;
    else if (strcmp(name, "freezer_events") == 0)
        plan->freezer_events = number;
    else if (strcmp(name, "oom") == 0)
        plan->out_of_memory = number;
    else if (strcmp(name, "pids") == 0)
        plan->processes = number;
    else if (strcmp(name, "monitor") == 0)
        plan->monitor = number;
    else if (strcmp(name, "resume") == 0)
        plan->resume = number;
    else if (strcmp(name, "uid") == 0)
        plan->uid = (uid_t)number;
    else if (strcmp(name, "cgroup") == 0 && plan->cgroup_count < PLAN_CGROUPS_MAX)
        plan->cgroups[plan->cgroup_count++] = number;
    else if (strcmp(name, "engine_failed") == 0 && plan->engine_failed_count < PLAN_CODES_MAX)
        plan->engine_failed[plan->engine_failed_count++] = number;
    else
        *is_known = false;
    return number >= 0;
}

/* `field` is `name=value`, cut in place at its first `=`. */
static bool parse_field(struct plan *plan, char *field, struct failure *failure)
{
    char *value = strchr(field, '=');
    if (!value)
        return fail(failure, "the plan has a field without a value: %.100s", field);
    *value++ = 0;
    bool is_known = true;
    bool is_right = true;
    if (strcmp(field, "vm") == 0)
        plan->vm = value;
    else if (strcmp(field, "epoch") == 0)
        plan->epoch = value;
    else if (strcmp(field, "arg") == 0)
        plan->arguments[plan->argument_count++] = value;
    else if (strcmp(field, "env") == 0)
        plan->environment[plan->environment_count++] = value;
    else if (is_step(field))
        plan->steps[plan->step_count++] = (struct plan_step){field, value};
    else {
        is_right = parse_composed_field(plan, field, value, &is_known);
        if (!is_known)
            is_right = parse_number_field(plan, field, value, &is_known);
        if (!is_known)
            return fail(failure, "the plan has an unknown field: %.100s", field);
    }
    return is_right || fail(failure, "the plan has a wrong %s: %.100s", field, value);
}

static char *read_whole(int fd, size_t *length, struct failure *failure)
{
    struct stat status;
    if (fstat(fd, &status) < 0 || status.st_size <= 0 || status.st_size > PLAN_BYTES_MAX) {
        fail(failure, "the plan cannot be read, or has a wrong size");
        return NULL;
    }
    *length = (size_t)status.st_size;
    char *bytes = malloc(*length);
    if (bytes && pread(fd, bytes, *length, 0) == (ssize_t)*length && !bytes[*length - 1])
        return bytes;
    fail(failure, "the plan cannot be read, or does not end with NUL");
    free(bytes);
    return NULL;
}

/* The plan's memory is kept for as long as the shim lives. */
bool plan_read(int fd, struct plan *plan, struct failure *failure)
{
    *plan = (struct plan){.control = -1,
                          .freezer = -1,
                          .freezer_events = -1,
                          .weight = -1,
                          .out_of_memory = -1,
                          .processes = -1,
                          .monitor = -1,
                          .resume = -1,
                          .uid = NOBODY};
    size_t length;
    char *bytes = read_whole(fd, &length, failure);
    if (!bytes)
        return false;
    /* First of all whom to tell what is wrong with the others. */
    const char *control = fields_get((const uint8_t *)bytes, length, "control");
    if (!control || !plan_number(control, 0, &plan->control, NULL))
        return fail(failure, "the plan has no control");
    size_t fields = 0;
    for (size_t i = 0; i < length; i++)
        fields += !bytes[i];
    plan->arguments = calloc(fields + 1, sizeof *plan->arguments);
    plan->environment = calloc(fields + 1, sizeof *plan->environment);
    plan->steps = calloc(fields, sizeof *plan->steps);
    if (!plan->arguments || !plan->environment || !plan->steps)
        return fail(failure, "no memory for the plan");
    for (char *field = bytes; field < bytes + length; ) {
        char *next = field + strlen(field) + 1;
        if (!parse_field(plan, field, failure))
            return false;
        field = next;
    }
    if (!plan->vm || !plan->epoch || !plan->argument_count)
        return fail(failure, "the plan lacks vm, epoch or arg");
    return true;
}
