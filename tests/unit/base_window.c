/* base_window.c - a file through a window: lines of all lengths, from files and pipes, short and long. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/file.h"
#include "base/mem.h"
#include "base/window.h"
#include "tests/unit/scratch.h"

/* Line i is this long; some are longer than a window at first is. */
static size_t length(int i) { return i % 97 ? (size_t)(i * 31 % 200) : 300000; }

static char *lines(int n, size_t *bytes)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, bytes);
    for (int i = 1; i <= n; i++) {
        for (size_t k = 0; k < length(i); k++)
            putc('a' + (i + (int)k) % 26, f);
        if (i < n)
            putc('\n', f);
    }
    fclose(f);
    return text;
}

/* A FIFO that a child writes text to. */
static char *fifo(const char *dir, const char *text, size_t bytes)
{
    char *path = dt_path_join(dir, "fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    if (!fork()) {
        int fd = open(path, O_WRONLY);
        for (ssize_t k; bytes && (k = write(fd, text, bytes)) > 0; text += k)
            bytes -= (size_t)k;
        _exit(0);
    }
    return path;
}

static char *file(const char *dir, const char *text, size_t bytes)
{
    char *path = dt_path_join(dir, "file");
    assert_int_equal(dt_file_write(path, text, bytes, NULL), 0);
    return path;
}

static void check_lines(const char *path, const char *text, size_t bytes, int n)
{
    dt_window w;
    dt_err err = { 0 };
    const char *want = text;
    char *p, *all;
    size_t got;
    int i = 0, rc = dt_window_open(&w, path, 1 << 30, &err);
    if (rc < 0)
        fail_msg("%s", err.msg);
    for (; (rc = dt_window_line(&w, &p, &got, &err)) > 0; want += got + 1) {
        i++;
        assert_int_equal(got, length(i));
        assert_memory_equal(p, want, got);
    }
    assert_int_equal(rc, 0);
    assert_int_equal(i, n);
    assert_true(w.end && w.at == w.n && w.cap < 3000000);
    assert_int_equal(dt_window_all(&w, &all, &got, &err), 0);
    assert_int_equal(got, bytes);
    assert_memory_equal(all, text, bytes);
    free(all);
    dt_window_close(&w);
}

static void lines_of_files_and_pipes(void **state)
{
    static const int count[] = { 1, 2, 50, 999, 20001 };
    for (size_t c = 0; c < sizeof count / sizeof *count; c++) {
        size_t bytes;
        char *text = lines(count[c], &bytes), *a = file(*state, text, bytes), *b = fifo(*state, text, bytes);
        check_lines(a, text, bytes, count[c]);
        check_lines(b, text, bytes, count[c]);
        assert_true(wait(NULL) > 0);
        unlink(b);
        free(a);
        free(b);
        free(text);
    }
}

static void standard_input_in_its_middle(void **state)
{
    char *path = file(*state, "not this\nbut this\nand that", 26);
    int keep = dup(STDIN_FILENO), fd = open(path, O_RDONLY);
    assert_int_equal(lseek(fd, 9, SEEK_SET), 9);
    dup2(fd, STDIN_FILENO);
    close(fd);
    dt_window w;
    char *p;
    size_t n;
    assert_int_equal(dt_window_open(&w, "-", 100, NULL), 0);
    assert_int_equal(dt_window_line(&w, &p, &n, NULL), 1);
    assert_true(n == 8 && !memcmp(p, "but this", 8));
    assert_int_equal(dt_window_all(&w, &p, &n, NULL), 0);
    assert_string_equal(p, "but this\nand that");
    free(p);
    dt_window_close(&w);
    dup2(keep, STDIN_FILENO);
    close(keep);
    free(path);
}

static void what_is_too_large_or_not_there(void **state)
{
    size_t bytes;
    char *text = lines(100, &bytes), *a = file(*state, text, bytes), *b = fifo(*state, text, bytes), *c;
    dt_window w;
    dt_err err = { 0 };
    assert_int_equal(dt_window_open(&w, a, bytes, &err), 0);
    dt_window_close(&w);
    assert_int_equal(dt_window_open(&w, a, bytes - 1, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "is larger than"));
    dt_window_close(&w);
    assert_int_equal(dt_window_open(&w, b, bytes - 1, &err), DT_EDATA);
    assert_non_null(strstr(err.msg, "is larger than"));
    dt_window_close(&w);
    assert_true(wait(NULL) > 0);
    unlink(b);
    c = fifo(*state, "12345", 5);
    assert_int_equal(dt_window_open(&w, c, 4, &err), DT_EDATA);
    dt_window_close(&w);
    assert_true(wait(NULL) > 0);
    assert_int_equal(dt_window_open(&w, "/nowhere/at/all", 4, &err), DT_EDATA);
    dt_window_close(&w);
    free(text);
    free(a);
    free(b);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scratch_test(lines_of_files_and_pipes),
        scratch_test(standard_input_in_its_middle),
        scratch_test(what_is_too_large_or_not_there),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
