/* Freezing the VM, with the dead man's handle: it is undone at its deadline and
 * when the connection that asked ends. */
#include "core.h"

#include <errno.h>
#include <string.h>

#define RETRY_MS 1u
#define GIVE_UP_MS 1000u

static void settle(struct core *core)
{
    struct freeze *freeze = &core->freeze;
    if (core->host->freezer_is_done()) {
        reply_ok(freeze->asked.connection, freeze->asked.id);
        freeze->asked.connection = NULL;
    } else if (core->now_ms >= freeze->give_up_ms) {
        reply_error(freeze->asked.connection, freeze->asked.id,
                    "the VM could not be frozen in %u ms", GIVE_UP_MS);
        freeze->asked.connection = NULL;
        freeze_undo(core);
    }
}

void freeze_ask(struct core *core, struct connection *connection, uint64_t id, uint64_t after_ms)
{
    struct freeze *freeze = &core->freeze;
    if (!core->host->has_freezer()) {
        reply_error(connection, id, "this VM has no freezer");
        return;
    }
    if (freeze->asked.connection || (freeze->is_on && freeze->owner != connection)) {
        reply_error(connection, id, "the VM is being frozen by another request");
        return;
    }
    if (!core->host->freezer_write(true)) {
        reply_error(connection, id, "the freezer cannot be written: %s", strerror(errno));
        return;
    }
    freeze->is_on = true;
    freeze->owner = connection;
    freeze->deadline_ms = after_ms && after_ms < NEVER - core->now_ms ? core->now_ms + after_ms
                                                                      : NEVER;
    freeze->asked = (struct pending){connection, id};
    freeze->give_up_ms = core->now_ms + GIVE_UP_MS;
    settle(core);
}

bool freeze_undo(struct core *core)
{
    struct freeze *freeze = &core->freeze;
    if (freeze->asked.connection)
        reply_error(freeze->asked.connection, freeze->asked.id, "the VM was thawed meanwhile");
    freeze->asked.connection = NULL;
    freeze->is_on = false;
    freeze->owner = NULL;
    return !core->host->has_freezer() || core->host->freezer_write(false);
}

void freeze_owner_gone(struct core *core, const struct connection *connection)
{
    if (!core->freeze.is_on || core->freeze.owner != connection)
        return;
    core->freeze.asked.connection = NULL;
    freeze_undo(core);
}

uint64_t freeze_tick(struct core *core)
{
    struct freeze *freeze = &core->freeze;
    if (!freeze->is_on)
        return NEVER;
    if (freeze->deadline_ms <= core->now_ms) {
        freeze_undo(core);
        return NEVER;
    }
    if (freeze->asked.connection)
        settle(core);
    if (freeze->asked.connection)
        return core->now_ms + RETRY_MS;
    return freeze->is_on ? freeze->deadline_ms : NEVER;
}
