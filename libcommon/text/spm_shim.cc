// spm_shim.cc - libsentencepiece for C: no exception, no C++ type and no output leaves this file.
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>
extern "C" {
#include "text/spm_shim.h"
}

struct dt_spm {
    sentencepiece::SentencePieceProcessor sp;
};

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

// Runs `f`, which returns a status, and turns whatever happens into an error code.
template <typename F> int guarded(dt_err *err, const char *what, F f)
{
    try {
        sentencepiece::util::Status st = f();
        return st.ok() ? 0 : dt_err_set(err, DT_EDATA, "%s: %s", what, st.ToString().c_str());
    } catch (const std::bad_alloc &) {
        return dt_err_set(err, DT_ENOMEM, "%s: out of memory", what);
    } catch (const std::exception &e) {
        return dt_err_set(err, DT_EDATA, "%s: %s", what, e.what());
    }
}

}  // namespace

extern "C" {

int dt_spm_open(dt_spm **out, const void *proto, size_t bytes, const char *what, dt_err *err)
{
    dt_spm *m = new (std::nothrow) dt_spm;
    if (!m)
        return dt_err_set(err, DT_ENOMEM, "%s: out of memory", what);
    int rc = guarded(err, what, [&] {
        return m->sp.LoadFromSerializedProto({static_cast<const char *>(proto), bytes});
    });
    if (rc < 0)
        delete m;
    else
        *out = m;
    return rc;
}

void dt_spm_close(dt_spm **m)
{
    delete *m;
    *m = nullptr;
}

int32_t dt_spm_size(const dt_spm *m)
{
    return m->sp.GetPieceSize();
}

int32_t dt_spm_unk(const dt_spm *m)
{
    return m->sp.unk_id();
}

int32_t dt_spm_id(const dt_spm *m, const char *piece)
{
    int id = m->sp.PieceToId(piece);
    return id >= 0 && id < m->sp.GetPieceSize() && m->sp.IdToPiece(id) == piece ? id : -1;
}

int dt_spm_encode(const dt_spm *m, const char *s, size_t bytes, int32_t **ids, int64_t *n, dt_err *err)
{
    return guarded(err, "sentencepiece", [&] {
        std::vector<int> v;
        sentencepiece::util::Status st = m->sp.Encode({s, bytes}, &v);
        if (!st.ok())
            return st;
        *ids = static_cast<int32_t *>(malloc(v.size() * sizeof **ids + 1));
        if (!*ids)
            throw std::bad_alloc();
        for (size_t i = 0; i < v.size(); i++)
            (*ids)[i] = v[i];
        *n = v.size();
        return st;
    });
}

int dt_spm_train(const char *const *options, char *const *lines, int64_t n, void **proto, size_t *bytes, dt_err *err)
{
    return guarded(err, "sentencepiece", [&] {
        std::unordered_map<std::string, std::string> args;
        for (; *options; options += 2)
            args[options[0]] = options[1];
        std::string model;
        lines_iterator it(lines, n);
        sentencepiece::util::Status st = sentencepiece::SentencePieceTrainer::Train(args, &it, &model);
        if (!st.ok())
            return st;
        *bytes = model.size();
        *proto = malloc(model.size() + 1);
        if (!*proto)
            throw std::bad_alloc();
        memcpy(*proto, model.data(), model.size());
        return st;
    });
}

}
