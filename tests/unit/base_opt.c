/* opt.h: parsing, and everything that is printed from the table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/json.h"
#include "base/opt.h"
#include "base/opt_impl.h"
#include "tests/unit/scratch.h"

struct opts {
    int flag, quiet, mode;
    int64_t rank, bytes, any;
    double lr;
    const char *out;
    dt_strs words, target;
};

static const char *const modes[] = { "uniform", "logit-normal", "mode", NULL };

static const dt_opt table[] = {
    DT_OPT_GROUP("Training"),
    { "train_flag", 0, NULL, DT_OPT_FLAG, offsetof(struct opts, flag), .help = "turn it on (default off)" },
    { "quiet", 'q', NULL, DT_OPT_FLAG, offsetof(struct opts, quiet), .help = "say less" },
    { "rank", 'n', "N", DT_OPT_INT, offsetof(struct opts, rank), 1, 1024, .help = "rank of the adapter (default 64)" },
    { "any", 0, "N", DT_OPT_INT, offsetof(struct opts, any), .help = "any integer" },
    { "learning_rate", 0, "F", DT_OPT_FLOAT, offsetof(struct opts, lr), -1, 1,
      .help = "step size of the optimiser, after the warm-up and before the decay that --rank and "
              "others ask for (default 1e-4)" },
    { "weighting", 0, NULL, DT_OPT_ENUM, offsetof(struct opts, mode), .choices = modes,
      .help = "how sigmas are drawn" },
    DT_OPT_GROUP("Output"),
    { "output_dir", 'o', "DIR", DT_OPT_STR, offsetof(struct opts, out), .help = ".ckpt's \\folder" },
    { "prompts", 0, "TEXT", DT_OPT_LIST, offsetof(struct opts, words), .help = "prompts" },
    { "targets", 0, "NAME", DT_OPT_LIST, offsetof(struct opts, target), .help = "modules", .comma = true,
      .repeat = true },
    { "memory", 0, "SIZE", DT_OPT_BYTES, offsetof(struct opts, bytes), 0, 1e15, .help = "memory" },
    DT_OPT_GROUP("Gone"),
    { "xformers", 0, NULL, DT_OPT_REFUSED, .help = "attention is always fused" },
    DT_OPT_END
};

static const dt_cli cli = {
    .tool = "dt-x lora", .synopsis = "[OPTION]... [FILE]...", .summary = "Does x to files.",
    .examples = "  dt-x lora a b", .table = table,
};

#define MAX_ARGS 16
/* Parses a line given as words between '|'. */
static int parse(struct opts *o, dt_strs *operands, dt_err *err, const char *line)
{
    static char buf[512];
    char *argv[MAX_ARGS] = { "dt-x" };
    int argc = 1;
    snprintf(buf, sizeof buf, "%s", line);
    for (char *p = buf, *w; *line && (w = strsep(&p, "|")); )
        argv[argc++] = w;
    *o = (struct opts){ .rank = 64, .lr = 1e-4 };
    *err = (dt_err){ 0 };
    return dt_cli_parse(&cli, o, argc, argv, operands, err);
}

static void ok(struct opts *o, const char *line)
{
    dt_err e;
    int rc = parse(o, NULL, &e, line);
    if (rc)
        print_error("%s: %s\n", line, e.msg);
    assert_int_equal(rc, 0);
}

static void fails(const char *line, const char *msg)
{
    struct opts o;
    dt_err e;
    assert_int_equal(parse(&o, NULL, &e, line), DT_EUSAGE);
    assert_string_equal(e.msg, msg);
    dt_strs_release(&o.words);
    dt_strs_release(&o.target);
}

static void values(void **state)
{
    (void)state;
    struct opts o;
    ok(&o, "");
    assert_true(o.rank == 64 && o.lr == 1e-4 && !o.out);
    ok(&o, "--rank=8|--learning-rate|-2.5e-1|--output_dir|-|--train-flag|-q|--weighting|logit_normal|--memory=1.5GiB");
    assert_true(o.rank == 8 && o.lr == -0.25 && o.flag == 1 && o.quiet == 1 && o.mode == 1);
    assert_string_equal(o.out, "-");
    assert_int_equal(o.bytes, 3ll << 29);
    ok(&o, "--any|-7|--memory|512m|-n16|-o=d");
    assert_true(o.any == -7 && o.bytes == 512 << 20 && o.rank == 16);
    assert_string_equal(o.out, "d");
    ok(&o, "--any=-9223372036854775808|-qn|3|-o|x=y");
    assert_true(o.any == INT64_MIN && o.rank == 3 && o.quiet);
    assert_string_equal(o.out, "x=y");
    ok(&o, "--train_flag=false");
    assert_int_equal(o.flag, 0);
    ok(&o, "--no-train_flag");
    assert_int_equal(o.flag, 0);
    ok(&o, "--train_flag=True|--output_dir=");
    assert_int_equal(o.flag, 1);
    assert_string_equal(o.out, "");
    ok(&o, "--memory=10|--weighting=uniform");
    assert_int_equal(o.bytes, 10);
}

static void lists(void **state)
{
    (void)state;
    struct opts o;
    ok(&o, "--prompts|a, b|-5|-|--targets|x,y|z|-q");
    assert_int_equal(o.words.n, 3);
    assert_string_equal(o.words.v[0], "a, b");
    assert_string_equal(o.words.v[1], "-5");
    assert_string_equal(o.words.v[2], "-");
    assert_int_equal(o.target.n, 3);
    assert_string_equal(o.target.v[2], "z");
    assert_int_equal(o.quiet, 1);
    dt_strs_release(&o.words);
    dt_strs_release(&o.target);
    ok(&o, "--prompts=one, two|--targets=x,y");
    assert_int_equal(o.words.n, 1);
    assert_int_equal(o.target.n, 2);
    dt_strs_release(&o.words);
    dt_strs_release(&o.target);
    ok(&o, "--targets|x,y|-q|--targets=z");
    assert_int_equal(o.target.n, 3);
    assert_string_equal(o.target.v[2], "z");
    dt_strs_release(&o.target);
    fails("--prompts", "option '--prompts' needs a value");
    fails("--prompts|--rank=3", "option '--prompts' needs a value");
    fails("--targets=,", "option '--targets' needs a value");
    fails("--prompts|a|--prompts|b", "option '--prompts' is given twice");
}

static void errors(void **state)
{
    (void)state;
    fails("--rnak=3", "unknown option '--rnak=3' (did you mean '--rank'?)");
    fails("--learning-rat|3", "unknown option '--learning-rat' (did you mean '--learning_rate'?)");
    fails("--versoin", "unknown option '--versoin' (did you mean '--version'?)");
    fails("--zzzzzzzz", "unknown option '--zzzzzzzz'; see --help");
    fails("-rank", "unknown option '-rank' (did you mean '--rank'?)");
    fails("--no_rank", "unknown option '--no_rank' (did you mean '--rank'?)");
    fails("--rank", "option '--rank' needs a value");
    fails("--rank|--quiet", "option '--rank' needs a value");
    fails("--rank=0", "option '--rank' must be an integer from 1 to 1024 (got '0')");
    fails("--rank=1025", "option '--rank' must be an integer from 1 to 1024 (got '1025')");
    fails("--rank|8x", "option '--rank' must be an integer from 1 to 1024 (got '8x')");
    fails("--rank= 8", "option '--rank' must be an integer from 1 to 1024 (got ' 8')");
    fails("--any=1e3", "option '--any' must be an integer (got '1e3')");
    fails("--any=9223372036854775808", "option '--any' must be an integer (got '9223372036854775808')");
    fails("--learning_rate=nan", "option '--learning_rate' must be a number from -1 to 1 (got 'nan')");
    fails("--learning_rate=0x1", "option '--learning_rate' must be a number from -1 to 1 (got '0x1')");
    fails("--learning_rate=1e999", "option '--learning_rate' must be a number from -1 to 1 (got '1e999')");
    fails("--memory=24X",
          "option '--memory' must be a number of bytes such as 512M or 24G from 0 to 1e+15 (got '24X')");
    fails("--train_flag=maybe", "option '--train_flag' must be true or false (got 'maybe')");
    fails("--weighting=unifrom", "option '--weighting' must be one of uniform, logit-normal, mode "
          "(got 'unifrom'; did you mean 'uniform'?)");
    fails("--rank=3|-n|4", "option '--rank' is given twice");
    fails("--train_flag|--no_train_flag", "option '--train_flag' is given twice");
    fails("--xformers", "--xformers: attention is always fused");
    fails("--xformers=yes", "--xformers: attention is always fused");
    fails("a.png", "unexpected operand 'a.png' (a value with blanks, * or {} must be in quotes)");
}

static void operands(void **state)
{
    (void)state;
    struct opts o;
    dt_strs s = { 0 };
    dt_err e;
    assert_int_equal(parse(&o, &s, &e, "a|-|-3|--rank|2|b|--|--rank|-q"), 0);
    assert_int_equal(s.n, 6);
    assert_string_equal(s.v[2], "-3");
    assert_string_equal(s.v[3], "b");
    assert_string_equal(s.v[5], "-q");
    assert_int_equal(o.rank, 2);
    dt_strs_release(&s);
}

static void given(void **state)
{
    (void)state;
    char *argv[] = { "dt-x", "--prompts", "a", "--learning-rate", "3", "--output_dir", "--rank", NULL };
    assert_true(dt_cli_given(&cli, 5, argv, "learning_rate"));
    assert_true(dt_cli_given(&cli, 5, argv, "prompts"));
    assert_false(dt_cli_given(&cli, 5, argv, "rank"));
    assert_false(dt_cli_given(&cli, 1, argv, "prompts"));
}

static char *help(void)
{
    char *s = NULL;
    size_t n;
    FILE *f = open_memstream(&s, &n);
    dt_cli_help(&cli, "all", f, NULL);
    fclose(f);
    return s;
}

static void help_text(void **state)
{
    (void)state;
    char *s = help();
    assert_ptr_equal(strstr(s, "Usage: dt-x lora [OPTION]... [FILE]...\nDoes x to files.\n\nTraining:\n"), s);
    assert_non_null(strstr(s, "\n  -n, --rank=N                rank of the adapter (default 64)\n"));
    assert_non_null(strstr(s, "\n      --prompts TEXT...       prompts\n"));
    assert_non_null(strstr(s, "\n      --targets=NAME,...      modules\n"));
    assert_non_null(strstr(s, "\n      --weighting=uniform|logit-normal|mode\n"
                              "                              how sigmas"));
    assert_non_null(strstr(s, "\n\nCommon options:\n  -h, --help  "));
    assert_non_null(strstr(s, "\n\nExamples:\n  dt-x lora a b\n"));
    assert_null(strstr(s, "xformers"));
    assert_null(strstr(s, "Gone"));
    assert_null(strstr(s, "help_man"));
    for (char *p = s, *nl; *p; p = nl + 1) {
        nl = strchr(p, '\n');
        assert_true(nl - p <= 80);
        assert_true(nl == p || nl[-1] != ' ');
    }
    free(s);
}

static char *capture(void (*print)(FILE *))
{
    char *s = NULL;
    size_t n;
    FILE *f = open_memstream(&s, &n);
    print(f);
    fclose(f);
    return s;
}

static void print_man(FILE *f)
{
    dt_cli_man(&cli, f);
}

static void short_help(void **state)
{
    (void)state;
    static const dt_opt some[] = {
        DT_OPT_GROUP("Training"),
        { "rank", 0, "N", DT_OPT_INT, offsetof(struct opts, rank), 1, 9, .help = "size of the adapter", .often = true },
        { "odd_one", 0, "N", DT_OPT_INT, offsetof(struct opts, any), .help = "hardly ever" },
        DT_OPT_END
    };
    const dt_cli c = { .tool = "dt-x", .synopsis = "", .summary = "Does x.", .table = some };
    dt_err err = { 0 };
    char *s[3] = { NULL, NULL, NULL };
    size_t n;
    for (int i = 0; i < 3; i++) {
        FILE *f = open_memstream(&s[i], &n);
        assert_int_equal(dt_cli_help(&c, i == 0 ? NULL : i == 1 ? "Odd-One" : "all", f, NULL), 0);
        fclose(f);
    }
    assert_non_null(strstr(s[0], "--rank"));
    assert_null(strstr(s[0], "odd_one"));
    assert_non_null(strstr(s[0], "\n5 more options: --help all lists them"));
    assert_null(strstr(s[1], "--rank"));
    assert_non_null(strstr(s[1], "--odd_one"));
    assert_non_null(strstr(s[2], "--odd_one"));
    assert_int_equal(dt_cli_help(&c, "nothing of it", stdout, &err), DT_EUSAGE);
    for (int i = 0; i < 3; i++)
        free(s[i]);
}

static void man_text(void **state)
{
    (void)state;
    char *s = capture(print_man);
    assert_non_null(strstr(s, ".Ss Training\n.Bl -tag -width Ds\n.It Fl -train_flag\nturn it on (default off)\n"));
    assert_non_null(strstr(s, ".It Fl n , Fl -rank Ns = Ns Ar \\&N\nrank"));
    assert_non_null(strstr(s, ".It Fl -weighting Ns = Ns Cm uniform | logit-normal | mode\n"));
    assert_non_null(strstr(s, ".It Fl -prompts Ar TEXT...\n"));
    assert_non_null(strstr(s, "\n\\&.ckpt's \\efolder\n"));
    assert_null(strstr(s, "xformers"));
    free(s);
}

static struct opts shown;
static void print_config(FILE *f)
{
    char *argv[] = { "dt-x", "--learning_rate=1e-4", "--prompts", "a b", "c", "--weighting=mode", "-q" };
    char *text = dt_cli_config(&cli, &shown, 7, argv, true);
    fputs(text, f);
    free(text);
}

static void config_text(void **state)
{
    (void)state;
    ok(&shown, "--learning_rate=1e-4|--prompts|a b|c|--weighting=mode|-q");
    char *s = capture(print_config);
    assert_string_equal(s,
                        "{\"train_flag\":{\"value\":false,\"from\":\"default\"},\"quiet\":{\"value\":true,\"from\":\"flag\"},"
                           "\"rank\":{\"value\":64,\"from\":\"default\"},\"any\":{\"value\":0,\"from\":\"default\"},"
                           "\"learning_rate\":{\"value\":0.0001,\"from\":\"flag\"},\"weighting\":{\"value\":\"mode\",\"from\":\"flag\"},"
                           "\"output_dir\":{\"value\":null,\"from\":\"default\"},\"prompts\":{\"value\":[\"a b\",\"c\"],\"from\":\"flag\"},"
                           "\"targets\":{\"value\":[],\"from\":\"default\"},\"memory\":{\"value\":0,\"from\":\"default\"}}\n");
    free(s);
    dt_strs_release(&shown.words);
    char *argv[] = { "dt-x", "--prompts", "it's", "c", "-q", "--rank=9", "--any=1000000" };
    ok(&shown, "--prompts|it's|c|-q|--rank=9|--any=1000000");
    shown.mode = -1;
    s = dt_cli_config(&cli, &shown, 7, argv, false);
    assert_non_null(strstr(s, "dt-x lora \\\n    --quiet \\\n    --rank=9 \\\n    --any=1000000 \\\n"
                              "    --prompts 'it'\\''s' c\n# default:\n#   --no_train_flag\n"));
    assert_non_null(strstr(s, "\n#   --learning_rate=0.0001\n"));
    assert_non_null(strstr(s, "\n# not set: --output_dir --targets\n"));
    assert_non_null(strstr(s, "\n# chosen by the model, the data or other options: --weighting\n"));
    free(s);
    dt_strs_release(&shown.words);
}

/* The scripts, written for the shells themselves to judge. */
static void completion(void **state)
{
    static const char *const output_dir[] = {
        "--output_dir) local IFS", "[.ckpt'\\''s \\\\folder]:DIR:_files -/'", "-d \".ckpt's \\\\folder\"",
    };
    char *path = dt_path_join(*state, "script"), cmd[1000], *script;
    size_t n;
    for (int i = 0; dt_cli_shells[i]; i++) {
        FILE *f = fopen(path, "w");
        dt_cli_completion((const dt_cli *[]){ &cli, NULL }, dt_cli_shells[i], f);
        fclose(f);
        snprintf(cmd, sizeof cmd, "! command -v %s >/dev/null || %s -n %s", dt_cli_shells[i], dt_cli_shells[i], path);
        assert_int_equal(system(cmd), 0);
        assert_int_equal(dt_file_read(&script, &n, path, 1 << 20, NULL), 0);
        assert_non_null(strstr(script, output_dir[i]));
        free(script);
        if (!i) {
            snprintf(cmd, sizeof cmd,
                     "bash -c '. %s; t() { COMP_WORDS=(dt-x \"$@\"); COMP_CWORD=$#; COMPREPLY=(); _dt_x 2>/dev/null; "
                     "echo -n \"${COMPREPLY[*]};\"; }; "
                     "t l; t lora --ra; t lora --weighting = m; t lora --weighting =; t nix --ra' "
                     "| grep -qx 'lora;--rank=;mode;uniform logit-normal mode;;'", path);
            assert_int_equal(system(cmd), 0);
        }
    }
    free(path);
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(values), cmocka_unit_test(lists), cmocka_unit_test(errors), cmocka_unit_test(operands),
        cmocka_unit_test(given), cmocka_unit_test(help_text), cmocka_unit_test(man_text), cmocka_unit_test(short_help),
        cmocka_unit_test(config_text), scratch_test(completion),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests_name("base_opt", t, NULL, NULL);
}
