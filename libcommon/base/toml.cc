// toml.cc - see toml.h.
#include <cstdlib>
#include <exception>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

// Some malformed keys only meet an assertion of the library (3.3.0): that must be an error like others, not the end.
[[noreturn]] static void malformed() { throw std::runtime_error("malformed TOML"); }
#define TOML_ASSERT(ok) ((ok) ? void() : malformed())
#include <toml++/toml.h>
extern "C" {
#include "base/file.h"
#include "base/json.h"
#include "base/toml.h"
}

static int parse(std::string &json, std::string_view text, const char *path, dt_err *err)
{
    try {
        std::ostringstream o;
        o << toml::json_formatter{ toml::parse(text) };
        json = o.str();
        return 0;
    } catch (const toml::parse_error &e) {
        auto at = e.source().begin;
        return dt_err_set(err, DT_EDATA, "%s: line %u, column %u: %s", path, (unsigned)at.line, (unsigned)at.column,
                          std::string(e.description()).c_str());
    } catch (const std::bad_alloc &) {
        return dt_err_set(err, DT_ENOMEM, "%s: out of memory", path);
    } catch (const std::exception &e) {
        return dt_err_set(err, DT_EDATA, "%s: %s", path, e.what());
    }
}

int dt_toml_read(cJSON **out, const char *path, size_t max_bytes, dt_err *err)
{
    char *text = nullptr;
    size_t bytes = 0;
    std::string json;
    int rc = dt_file_read(&text, &bytes, path, max_bytes, err);
    if (rc == 0)
        rc = parse(json, std::string_view(text, bytes), path, err);
    free(text);
    return rc < 0 ? rc : dt_json_parse(out, json.c_str(), json.size(), path, err);
}
