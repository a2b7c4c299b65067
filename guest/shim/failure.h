/* One sentence on what went wrong, carried to whoever can say it. */
#ifndef MAGS_SHIM_FAILURE_H
#define MAGS_SHIM_FAILURE_H

#include <stdbool.h>

struct failure {
    char text[512];
};

/* Print the sentence (%m is errno's text) and return false. */
__attribute__((format(printf, 2, 3)))
bool fail(struct failure *failure, const char *format, ...);

#endif
