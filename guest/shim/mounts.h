/* The set-up steps of a plan: network namespace, mounts, files. All in the
 * shim's own mount namespace, so that they end with it. */
#ifndef MAGS_SHIM_MOUNTS_H
#define MAGS_SHIM_MOUNTS_H

#include "plan.h"

/* Do all steps in their order; the first that fails is named in `failure`. */
bool mounts_run(const struct plan *plan, struct failure *failure);

#endif
