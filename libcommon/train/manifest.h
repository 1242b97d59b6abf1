/* manifest.h - run.json: what was run, on what, from what.  One object per run of the folder, the last one last:
 *
 *   {"runs": [{"command": ["dt-train", "lora", ...], "version": ..., "started": ..., "status": "done", ...}]}
 *
 * Written when a run begins ("running") and again when it ends; a run that could not write its end reads
 * "broken off" from the next one on.  It holds times and host names, so it is no part of what the
 * same seed reproduces. */
#ifndef DT_TRAIN_MANIFEST_H
#define DT_TRAIN_MANIFEST_H
#include <stdint.h>
#include <cjson/cJSON.h>
#include "base/err.h"
#include "graph/device.h"

typedef struct dt_manifest dt_manifest;

/* Reads DIR/run.json, if there is one, and begins a run in it.  A file that is no such thing is set
 * aside, as run.json.old. */
dt_manifest *dt_manifest_new(const char *dir);
void dt_manifest_free(dt_manifest **m);
/* Of the run: add fields to it, then write. */
cJSON *dt_manifest_run(dt_manifest *m);
void dt_manifest_command(dt_manifest *m, int argc, char *const *argv);
void dt_manifest_host(dt_manifest *m, const dt_device *dev);
/* "result" of the latest run of the folder that has one; NULL: none.  Borrowed. */
const cJSON *dt_manifest_result(const dt_manifest *m);
int  dt_manifest_write(dt_manifest *m, dt_err *err);
/* The end: rc as the run returns it, and its message. */
int  dt_manifest_end(dt_manifest *m, int rc, const char *message, dt_err *err);

#endif
