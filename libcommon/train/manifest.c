/* manifest.c - see manifest.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "train/manifest.h"

#define MAX_BYTES (64 << 20)
enum { MAX_RUNS = 100 };            /* the oldest are forgotten */

struct dt_manifest {
    char  *path;
    cJSON *root, *run;              /* run: borrowed from root */
    struct timespec started;
};

/* "2026-05-04T03:02:01Z" */
static void add_time(cJSON *o, const char *name)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    cJSON_AddStringToObject(o, name, text);
}

/* The runs of an earlier file; NULL: there is none, or it is something else. */
static cJSON *earlier(const char *path)
{
    cJSON *root = NULL, *run, *runs;
    if (!dt_exists(path))
        return NULL;
    int rc = dt_json_read(&root, path, MAX_BYTES, NULL);
    runs = rc == 0 ? cJSON_GetObjectItemCaseSensitive(root, "runs") : NULL;
    if (!cJSON_IsArray(runs)) {
        char *aside = dt_sprintf("%s.old", path);
        if (rename(path, aside) < 0)
            errno = 0;              /* then it is written over */
        free(aside);
        cJSON_Delete(root);
        return NULL;
    }
    cJSON_ArrayForEach(run, runs) {
        const char *status = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(run, "status"));
        if (status && !strcmp(status, "running"))
            cJSON_ReplaceItemInObjectCaseSensitive(run, "status", cJSON_CreateString("broken off"));
    }
    while (cJSON_GetArraySize(runs) >= MAX_RUNS)
        cJSON_DeleteItemFromArray(runs, 0);
    return root;
}

dt_manifest *dt_manifest_new(const char *dir)
{
    dt_manifest *m = dt_alloc(sizeof(*m));
    m->path = dt_path_join(dir, "run.json");
    m->root = earlier(m->path);
    if (!m->root) {
        m->root = cJSON_CreateObject();
        cJSON_AddArrayToObject(m->root, "runs");
    }
    m->run = cJSON_CreateObject();
    cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(m->root, "runs"), m->run);
    cJSON_AddStringToObject(m->run, "status", "running");
    cJSON_AddStringToObject(m->run, "version", DT_VERSION);
    add_time(m->run, "started");
    clock_gettime(CLOCK_MONOTONIC, &m->started);
    return m;
}

void dt_manifest_free(dt_manifest **pm)
{
    dt_manifest *m = *pm;
    *pm = NULL;
    if (!m)
        return;
    cJSON_Delete(m->root);
    free(m->path);
    free(m);
}

cJSON *dt_manifest_run(dt_manifest *m) { return m->run; }

void dt_manifest_command(dt_manifest *m, int argc, char *const *argv)
{
    char cwd[4096];
    cJSON *list = cJSON_AddArrayToObject(m->run, "command");
    for (int i = 0; i < argc; i++)
        cJSON_AddItemToArray(list, cJSON_CreateString(argv[i]));
    if (getcwd(cwd, sizeof(cwd)))
        cJSON_AddStringToObject(m->run, "folder", cwd);
}

/* The processor's name, as the kernel has it; "" if it does not say. */
static void cpu_name(char *buf, size_t size)
{
    char line[512];
    FILE *f = fopen("/proc/cpuinfo", "re");
    *buf = '\0';
    while (f && fgets(line, sizeof(line), f)) {
        char *colon = strchr(line, ':');
        if (colon && !strncmp(line, "model name", 10)) {
            snprintf(buf, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
            buf[strcspn(buf, "\n")] = '\0';
            break;
        }
    }
    if (f)
        fclose(f);
}

void dt_manifest_host(dt_manifest *m, const dt_device *dev)
{
    struct utsname u;
    char cpu[512];
    cJSON *h = cJSON_AddObjectToObject(m->run, "host");
    if (uname(&u) == 0) {
        cJSON_AddStringToObject(h, "name", u.nodename);
        cJSON_AddStringToObject(h, "system", u.sysname);
        cJSON_AddStringToObject(h, "release", u.release);
        cJSON_AddStringToObject(h, "machine", u.machine);
    }
    cpu_name(cpu, sizeof(cpu));
    if (*cpu)
        cJSON_AddStringToObject(h, "cpu", cpu);
    cJSON_AddNumberToObject(h, "cpus", (double)sysconf(_SC_NPROCESSORS_ONLN));
    cJSON_AddNumberToObject(h, "memory_bytes", (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE));
    cJSON_AddStringToObject(h, "device", dev->name);
    cJSON_AddNumberToObject(h, "threads", dev->threads);
}

const cJSON *dt_manifest_result(const dt_manifest *m)
{
    const cJSON *run, *last = NULL, *found;
    cJSON_ArrayForEach(run, cJSON_GetObjectItemCaseSensitive(m->root, "runs"))
        if ((found = cJSON_GetObjectItemCaseSensitive(run, "result")))
            last = found;
    return last;
}

int dt_manifest_write(dt_manifest *m, dt_err *err)
{
    return dt_json_write(m->path, m->root, true, err);
}

int dt_manifest_end(dt_manifest *m, int rc, const char *message, dt_err *err)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    cJSON_ReplaceItemInObjectCaseSensitive(m->run, "status",
        cJSON_CreateString(rc >= 0 ? "done" : rc == DT_ESIGNAL ? "stopped" : "failed"));
    if (rc < 0 && message && *message)
        cJSON_AddStringToObject(m->run, "message", message);
    add_time(m->run, "ended");
    double seconds =
        (double)(now.tv_sec - m->started.tv_sec) + (double)((now.tv_nsec - m->started.tv_nsec) / 1000000) * 1e-3;
    cJSON_AddNumberToObject(m->run, "seconds", seconds > 0 ? seconds : 0);
    return dt_manifest_write(m, err);
}
