/* A folder as the upper one of an overlay, read as a PAX archive piece by piece. It is
 * not to change meanwhile. */
#ifndef MAGS_TREE_H
#define MAGS_TREE_H

#include "../wire/wire.h"

struct tree;

/* Begin with the folder at `path`, which must not be a link. NULL, and errno. */
struct tree *tree_open(const char *path);

/* Append a piece of the archive. 0, or an errno; *is_done when that was the last one. */
int tree_read(struct tree *tree, struct queue *out, bool *is_done);

/* What was being read last. */
const char *tree_place(const struct tree *tree);

void tree_close(struct tree *tree);

#endif
