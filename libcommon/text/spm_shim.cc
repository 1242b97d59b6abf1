// spm_shim.cc - the trainer of libsentencepiece for C: no exception, no C++ type and no output leaves this file.
#include <sentencepiece_trainer.h>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <unordered_map>
extern "C" {
#include "text/spm_shim.h"
}

namespace {

class lines_iterator : public sentencepiece::SentenceIterator {
public:
    lines_iterator(char *const *lines, int64_t n) : line(lines), end(lines + n) { set(); }
    bool done() const override { return line == end; }
    void Next() override { ++line; set(); }
    const std::string &value() const override { return text; }
    sentencepiece::util::Status status() const override { return {}; }

private:
    void set() { if (line != end) text = *line; }
    char *const *line, *const *end;
    std::string text;
};

}  // namespace

extern "C" {

int dt_spm_train(const char *const *options, char *const *lines, int64_t n, void **proto, size_t *bytes, dt_err *err)
{
    try {
        std::unordered_map<std::string, std::string> args;
        for (; *options; options += 2)
            args[options[0]] = options[1];
        std::string model;
        lines_iterator it(lines, n);
        auto st = sentencepiece::SentencePieceTrainer::Train(args, &it, &model);
        if (!st.ok())
            return dt_err_set(err, DT_EDATA, "sentencepiece: %s", st.ToString().c_str());
        *proto = malloc(model.size() + 1);
        if (!*proto)
            throw std::bad_alloc();
        memcpy(*proto, model.data(), model.size());
        *bytes = model.size();
        return 0;
    } catch (const std::bad_alloc &) {
        return dt_err_set(err, DT_ENOMEM, "sentencepiece: out of memory");
    } catch (const std::exception &e) {
        return dt_err_set(err, DT_EDATA, "sentencepiece: %s", e.what());
    }
}

}
