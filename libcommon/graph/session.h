/* session.h - plans by shape over one arena.  A job announces every shape it will meet, then allocates the
 * arena once, for the largest; nothing grows afterwards. */
#ifndef DT_GRAPH_SESSION_H
#define DT_GRAPH_SESSION_H
#include "graph/graph.h"

enum { DT_SHAPE_MAX = 6 };
typedef struct dt_shape_key { int64_t v[DT_SHAPE_MAX]; } dt_shape_key;     /* meaning is the builder's; unused = 0 */

typedef struct dt_session dt_session;

/* Builds the graph of one shape, backward included; errors stick in the graph. */
typedef dt_graph *(*dt_build_fn)(void *ctx, const dt_shape_key *shape);

dt_session *dt_session_new(dt_device *dev, dt_build_fn build, void *ctx);
void        dt_session_free(dt_session **s);
/* Plans a shape unless it is planned already. */
int         dt_session_add(dt_session *s, const dt_shape_key *shape, dt_err *err);
/* Arena bytes for all shapes added, and the statistics of one of them (0..n-1 in order of adding; NULL beyond). */
int64_t     dt_session_bytes(const dt_session *s);
const dt_plan_stats *dt_session_stats(const dt_session *s, int i, dt_shape_key *shape);
/* Allocates the arena (its own, or `shared` of at least dt_session_bytes).  DT_ENOMEM says how much was asked. */
int         dt_session_alloc(dt_session *s, void *shared, dt_err *err);
/* The plan of a shape that was added, bound and ready; *g gets its graph (dt_find for inputs and outputs). */
dt_plan    *dt_session_use(dt_session *s, const dt_shape_key *shape, dt_graph **g);

#endif
