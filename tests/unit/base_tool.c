/* tool.h and progress.h: what a child process says and how it ends. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/progress.h"
#include "base/tool.h"
#include "tests/unit/scratch.h"

/* Runs fn in a child with its stderr caught; returns its wait status. */
static int run(int (*fn)(void), char *said, size_t size)
{
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    if (!pid) {
        dup2(p[1], STDERR_FILENO);
        close(p[0]);
        dt_argv0 = "dt-x";
        exit(fn());
    }
    close(p[1]);
    size_t n = 0;
    for (ssize_t got; n < size - 1 && (got = read(p[0], said + n, size - 1 - n)) > 0; )
        n += (size_t)got;
    said[n] = '\0';
    close(p[0]);
    int st;
    assert_int_equal(waitpid(pid, &st, 0), pid);
    return st;
}

static int words(void)
{
    dt_info("%d images", 3);
    errno = ENOENT;
    dt_warn("cannot open '%s':", "f");
    dt_quiet = true;
    dt_info("unheard");
    char big[4000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    dt_warn("%s", big);
    dt_die(4, "the end");
}

static void says(void **state)
{
    (void)state;
    char s[8000];
    int st = run(words, s, sizeof s);
    assert_true(WIFEXITED(st) && WEXITSTATUS(st) == 4);
    assert_memory_equal(s, "dt-x: 3 images\ndt-x: warning: cannot open 'f': No such file or directory\n"
                           "dt-x: warning: xxx", 90);
    assert_null(strstr(s, "unheard"));
    assert_string_equal(s + strlen(s) - 15, "\ndt-x: the end\n");
}

static int die_data(void)
{
    dt_err e;
    dt_err_set(&e, DT_EDATA, "f: bad:");
    return dt_die_err(&e);
}

static int die_signal(void)
{
    dt_err e;
    dt_err_set(&e, DT_ESIGNAL, "stopped");
    dt_stop = SIGTERM;
    return dt_die_err(&e);
}

static int die_unset(void)
{
    dt_err e = { 0 };
    return dt_die_err(&e);
}

static int full_disk(void)
{
    assert_non_null(freopen("/dev/full", "w", stdout));
    puts("data");
    return dt_finish(0);
}

static int full_disk_early(void)
{
    assert_non_null(freopen("/dev/full", "w", stdout));
    puts("data");
    fflush(stdout);
    return dt_finish(0);
}

static void ends(void **state)
{
    (void)state;
    char s[1000];
    assert_int_equal(WEXITSTATUS(run(die_data, s, sizeof s)), 4);
    assert_string_equal(s, "dt-x: f: bad:\n");
    assert_int_equal(WEXITSTATUS(run(die_signal, s, sizeof s)), 143);
    assert_int_equal(WEXITSTATUS(run(die_unset, s, sizeof s)), 1);
    assert_int_equal(WEXITSTATUS(run(full_disk, s, sizeof s)), 7);
    assert_non_null(strstr(s, "cannot write standard output: No space left"));
    assert_int_equal(WEXITSTATUS(run(full_disk_early, s, sizeof s)), 7);
    assert_int_equal(dt_finish(3), 3);
}

static int signals(void)
{
    dt_signals_install();
    raise(SIGUSR1);
    if (!dt_save || dt_stop)
        return 1;
    raise(SIGTERM);
    if (dt_stop != SIGTERM)
        return 2;
    usleep(5000);
    raise(SIGTERM);                 /* the same request, by another way */
    usleep(600000);
    raise(SIGINT);
    return 3;
}

static int broken_pipe(void)
{
    int p[2];
    signal(SIGPIPE, SIG_IGN);
    dt_signals_install();
    assert_int_equal(pipe(p), 0);
    close(p[0]);
    return (int)write(p[1], "x", 1);
}

static void signal_rules(void **state)
{
    (void)state;
    char s[100];
    int st = run(signals, s, sizeof s);
    assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGINT);
    st = run(broken_pipe, s, sizeof s);
    assert_true(WIFSIGNALED(st) && WTERMSIG(st) == SIGPIPE);
    assert_string_equal(s, "");
}

static char *path;

static int progress(void)
{
    dt_progress *p = NULL;
    dt_progress_close(&p);
    char fd[12];
    snprintf(fd, sizeof fd, "%d", open(path, O_WRONLY | O_APPEND | O_CREAT, 0666));
    if (dt_progress_open(&p, "train", "img", 10, fd, false, NULL) < 0)
        return 1;
    dt_progress_step(p, 4);
    usleep(20000);
    dt_progress_num(p, "loss", 0.5);
    dt_progress_num(p, "lr", 1e-4);
    dt_progress_num(p, "loss", 0.25);
    dt_progress_num(p, "img/s", 17.5);
    dt_progress_share(p, "of_peak", 0.421);
    dt_progress_step(p, 8);
    dt_progress_close(&p);
    return p ? 2 : 0;
}

/* The same on a terminal of 100 columns: what it drew. */
static void progress_bar(void **state)
{
    (void)state;
    struct winsize size = { .ws_col = 100, .ws_row = 20 };
    int master;
    pid_t pid = forkpty(&master, NULL, NULL, &size);
    assert_true(pid >= 0);
    if (!pid) {
        dt_progress *p = NULL;
        dt_argv0 = "dt-x";
        if (dt_progress_open(&p, "train", "step", 10, NULL, false, NULL) < 0)
            _exit(1);
        dt_progress_step(p, 0);
        for (int i = 1; i <= 5; i++) {
            usleep(120000);
            dt_progress_num(p, "loss", 0.25);
            dt_progress_share(p, "of_peak", 0.421);
            dt_progress_step(p, i);
        }
        _exit(0);
    }
    char s[4096];
    ssize_t n = 0, got;
    while (n < (ssize_t)sizeof s - 1 && (got = read(master, s + n, sizeof s - 1 - (size_t)n)) > 0)
        n += got;
    s[n] = '\0';
    close(master);
    waitpid(pid, NULL, 0);
    char *last = strrchr(s, '\r');
    assert_non_null(last);
    assert_non_null(strstr(s, "\rdt-x: train [....................] 0/10 step"));
    assert_memory_equal(last, "\rdt-x: train [##########..........] 5/10 step, ", 47);
    assert_non_null(strstr(last, " step/s, eta 0:0"));
    assert_non_null(strstr(last, ", loss 0.25, 42.1 % of peak\033[K"));
    for (char *line = s, *end; (end = strchr(line + 1, '\r')); line = end)
        assert_true(end - line <= 103);
}

static void progress_words(void **state)
{
    char s[1000], *text;
    size_t n;
    path = dt_path_join(*state, "progress");
    assert_int_equal(run(progress, s, sizeof s), 0);
    assert_memory_equal(s, "dt-x: train 8/10 img, ", 22);
    assert_non_null(strstr(s, " img/s, took 0:00, loss 0.25, lr 0.0001, 17.5 img/s, 42.1 % of peak\n"));
    assert_int_equal(dt_file_read(&text, &n, path, 1000, NULL), 0);
    char *line2 = strchr(text, '\n') + 1;
    cJSON *a = cJSON_ParseWithOpts(text, NULL, 0), *b = cJSON_ParseWithOpts(line2, NULL, 0);
    int64_t step, total;
    double rate, eta, loss;
    assert_int_equal(dt_json_int(&step, a, "step", 4, 4, "a", NULL), 0);
    assert_null(cJSON_GetObjectItem(a, "rate"));
    assert_int_equal(dt_json_int(&step, b, "step", 8, 8, "b", NULL), 0);
    assert_int_equal(dt_json_int(&total, b, "total", 10, 10, "b", NULL), 0);
    assert_int_equal(dt_json_num_or(&rate, b, "rate", 0, "b", NULL), 0);
    assert_int_equal(dt_json_num_or(&eta, b, "eta_s", 0, "b", NULL), 0);
    assert_int_equal(dt_json_num_or(&loss, b, "loss", 0, "b", NULL), 0);
    assert_true(rate > 0 && rate <= 200 && fabs(eta * rate - 2) < 1e-9 && loss == 0.25);
    assert_int_equal(dt_json_num_or(&loss, b, "of_peak", 0, "b", NULL), 0);
    assert_true(loss == 0.421);
    assert_null(strchr(s, '\r'));          /* no terminal: lines, no control characters */
    assert_null(strchr(s, '\033'));
    assert_string_equal(cJSON_GetObjectItem(b, "job")->valuestring, "train");
    cJSON_Delete(a);
    cJSON_Delete(b);
    free(text);
    free(path);
    dt_err e;
    dt_progress *p = NULL;
    assert_int_equal(dt_progress_open(&p, "a", "b", -1, "/no/such/file", true, &e), DT_EIO);
    assert_null(p);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(says), cmocka_unit_test(ends), cmocka_unit_test(signal_rules),
        scratch_test(progress_words), cmocka_unit_test(progress_bar),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base_tool", t, NULL, NULL);
}
