/* device.c - opening devices by name; CUDA comes from a plugin, so that every tool runs where it is absent. */
#include "graph/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define PLUGIN "libdt-cuda.so"

typedef dt_device *cuda_open_fn(int ordinal, int abi, dt_err *err);

/* Folder of the running program with a trailing slash, or "". */
static void exe_dir(char *buf, size_t bytes)
{
    ssize_t n = readlink("/proc/self/exe", buf, bytes - 1);
    buf[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(buf, '/');
    buf[slash ? slash + 1 - buf : 0] = '\0';
}

/* Beside the program, then on the library path.  Never closed: CUDA's libraries cannot be unloaded safely. */
static void *open_plugin(char *why, size_t bytes)
{
    char dir[4096];
    exe_dir(dir, sizeof(dir));
    char *beside = dt_sprintf("%s" PLUGIN, dir);
    void *lib = dlopen(access(beside, F_OK) ? PLUGIN : beside, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        snprintf(why, bytes, "%s", dlerror());
    free(beside);
    return lib;
}

static int open_cuda(dt_device **out, const char *name, int ordinal, dt_err *err)
{
    char why[512];
    void *lib = open_plugin(why, sizeof(why));
    if (!lib)
        return dt_err_set(err, DT_EFAIL, "device '%s': the CUDA plugin cannot be loaded: %s", name, why);
    cuda_open_fn *open;
    void *sym = dlsym(lib, "dt_cuda_open");
    memcpy(&open, &sym, sizeof(open));
    if (!open)
        return dt_err_set(err, DT_EFAIL, "device '%s': " PLUGIN " is not a plugin of dt", name);
    dt_err e = { 0 };
    *out = open(ordinal, DT_DEVICE_ABI, &e);
    return *out ? 0 : dt_err_set(err, e.code ? e.code : DT_EFAIL, "device '%s': %s", name, e.msg);
}

int dt_device_open(dt_device **out, const char *name, dt_err *err)
{
    if (!strcmp(name, "cpu"))
        return dt_cpu_open(out, err);
    if (!strcmp(name, "cuda"))
        return open_cuda(out, name, 0, err);
    if (!strncmp(name, "cuda:", 5)) {
        char *end;
        unsigned long n = strtoul(name + 5, &end, 10);
        if (name[5] >= '0' && name[5] <= '9' && !*end && n < 1024)
            return open_cuda(out, name, (int)n, err);
    }
    return dt_err_set(err, DT_EUSAGE, "device '%s' is none of cpu, cuda, cuda:N", name);
}

void dt_device_close(dt_device **d)
{
    if (*d)
        (*d)->close(*d);
    *d = NULL;
}
