/* memory.c - see memory.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "train/memory.h"

static const char *const names[DT_MEM_NKIND] = {
    "process", "weights", "gradients", "master weights", "optimiser moments", "ema", "activations", "batches", "dump",
    "pictures",
};

static double mib(int64_t bytes) { return (double)bytes / 1048576.0; }

/* --- counting --- */

dt_mem_moment *dt_mem_add(dt_mem_plan *p, const char *name, int64_t process)
{
    dt_mem_moment *m = &p->at[p->n++];
    *m = (dt_mem_moment){ .name = name, .kind[DT_MEM_PROCESS] = process };
    return m;
}

void dt_mem_add_start(dt_mem_plan *p)
{
    int64_t peak = dt_mem_peak();
    if (peak > dt_mem_total(dt_mem_largest(p)))
        dt_mem_add(p, "start", peak);
}

void dt_mem_add_params(dt_mem_moment *m, dt_params_bytes b)
{
    m->kind[DT_MEM_WEIGHTS] += b.weights;
    m->kind[DT_MEM_GRADS] += b.grads;
    m->kind[DT_MEM_MASTER] += b.master;
    m->kind[DT_MEM_MOMENTS] += b.moments;
    m->kind[DT_MEM_EMA] += b.ema;
}

int64_t dt_mem_total(const dt_mem_moment *m)
{
    int64_t sum = 0;
    for (int k = 0; k < DT_MEM_NKIND; k++)
        sum += m->kind[k];
    return sum;
}

const dt_mem_moment *dt_mem_largest(const dt_mem_plan *p)
{
    const dt_mem_moment *most = &p->at[0];
    for (int i = 1; i < p->n; i++)
        if (dt_mem_total(&p->at[i]) > dt_mem_total(most))
            most = &p->at[i];
    return most;
}

/* --- saying --- */

void dt_mem_table(FILE *f, const dt_mem_plan *p)
{
    fprintf(f, "%-24s", "peak by kind");
    for (int i = 0; i < p->n; i++)
        fprintf(f, " %12s", p->at[i].name);
    fputc('\n', f);
    for (int k = 0; k <= DT_MEM_NKIND; k++) {
        bool any = k == DT_MEM_NKIND;
        for (int i = 0; i < p->n && !any; i++)
            any = p->at[i].kind[k] > 0;
        if (!any)
            continue;
        fprintf(f, "  %-22s", k < DT_MEM_NKIND ? names[k] : "total");
        for (int i = 0; i < p->n; i++)
            fprintf(f, " %8.1f MiB", mib(k < DT_MEM_NKIND ? p->at[i].kind[k] : dt_mem_total(&p->at[i])));
        fputc('\n', f);
    }
}

char *dt_mem_line(const dt_mem_plan *p)
{
    const int64_t *k = dt_mem_largest(p)->kind;
    int64_t optim = k[DT_MEM_GRADS] + k[DT_MEM_MASTER] + k[DT_MEM_MOMENTS] + k[DT_MEM_EMA];
    char *trained = !optim ? dt_strdup("")
                  : dt_sprintf("%soptimiser %.1f, ", k[DT_MEM_GRADS] ? "gradients and " : "", mib(optim));
    char *line = dt_sprintf("memory plan: %.1f MiB peak (weights %.1f, %sactivations %.1f)",
                            mib(dt_mem_total(dt_mem_largest(p))), mib(k[DT_MEM_WEIGHTS]), trained,
                            mib(k[DT_MEM_ACTIVATIONS]));
    free(trained);
    return line;
}

bool dt_mem_fits(const dt_mem_plan *p, int64_t budget)
{
    return !budget || dt_mem_total(dt_mem_largest(p)) + DT_MEM_RESERVE <= budget;
}

int dt_mem_accept(const dt_mem_plan *p, int64_t budget, const dt_device *dev, dt_err *err)
{
    int64_t most = dt_mem_total(dt_mem_largest(p));
    if (!dt_mem_fits(p, budget))
        return dt_err_set(err, DT_ENOMEM, "the smallest memory budget that would do is %.0fM, asked for %.0fM",
                          ceil(mib(most + DT_MEM_RESERVE + DT_MEM_VARIES)), mib(budget));
    if (dev->mem_bytes > 0 && most > dev->mem_bytes)
        return dt_err_set(err, DT_ENOMEM, "this run needs %.1f MiB, %s has %.1f MiB", mib(most), dev->name,
                          mib(dev->mem_bytes));
    return 0;
}

/* --- what the system says --- */

/* A line of /proc/self/status, in bytes. */
static int64_t status(const char *name)
{
    char line[256];
    size_t n = strlen(name);
    long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof(line), f))
        if (!strncmp(line, name, n) && sscanf(line + n, ": %lld kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (int64_t)kib * 1024;
}

int64_t dt_mem_resident(void) { return status("VmRSS"); }
int64_t dt_mem_peak(void) { return status("VmHWM"); }

char *dt_mem_report(const dt_mem_plan *p)
{
    int64_t peak = dt_mem_peak();
    return peak ? dt_sprintf("peak memory %.1f MiB, planned %.1f MiB", mib(peak), mib(dt_mem_total(dt_mem_largest(p))))
                : NULL;
}
