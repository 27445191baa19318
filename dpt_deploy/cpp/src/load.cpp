#include "load.h"

#include <algorithm>
#include <vector>

#include "engine.h"
#include "error.h"
#include "library.h"
#include "machine.h"
#include "onnxruntime.h"

namespace dpt_impl {
namespace {

constexpr const char *kBackends[] = {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"};
constexpr const char *kPrecisions[] = {"fp16", "bf16", "fp32"};

struct Refusal {
    const char *backend;
    std::string why;
};

bool is_engine(const char *backend) { return std::string(backend).rfind("tensorrt", 0) == 0; }

bool on_gpu(const char *backend) { return std::string(backend) != "onnxruntime-cpu"; }

// What `backend` could run, the one preferred first.
std::vector<const Artifact *> candidates(const Bundle &bundle, const char *backend, const char *precision) {
    std::vector<std::string> order = {"fp16", "bf16", "fp32"};
    if (!on_gpu(backend)) order = {"fp32", "fp16", "bf16"};
    if (precision != nullptr) order = {precision};
    std::vector<const Artifact *> found;
    for (const std::string &wanted : order) {
        for (const Artifact &artifact : bundle.artifacts()) {
            if (artifact.graph != "frame" || artifact.precision != wanted) continue;
            const bool fits = is_engine(backend) ? artifact.kind == "engine" && artifact.engine.builder == backend
                                                 : artifact.kind == "onnx";
            if (fits) found.push_back(&artifact);
        }
    }
    return found;
}

std::string nothing_for(const Bundle &bundle, const char *backend, const char *precision, bool gpu) {
    const std::string wanted = precision != nullptr ? text("frame graph in ", precision) : "frame graph";
    if (is_engine(backend)) {
        const std::string nothing = "the bundle has no such engine of the " + wanted;
        // How to build an engine is of use where it could run.
        if (!gpu) return nothing;
        return text(nothing, "; to build one, on the GPU that will run it: ", bundle.rebuild_command(), " --builder ",
                    backend);
    }
    std::vector<std::string> have;
    for (const Artifact &artifact : bundle.artifacts()) {
        if (artifact.kind == "onnx") have.push_back(artifact.file);
    }
    return text("the bundle has no ONNX file of the ", wanted, ", it has ",
                have.empty() ? "no ONNX graph at all" : joined(have));
}

std::unique_ptr<Session> open(const Bundle &bundle, const Artifact &artifact, const char *backend,
                              const dpt_options &options) {
    if (is_engine(backend)) {
        std::string folder = option_or_environment(options.backend_folder, "DPT_BACKEND_FOLDER");
        if (folder.empty()) folder = own_folder();
        return open_engine(bundle, artifact, backend, folder, options.device, options.no_cuda_graph != 0);
    }
    const std::string library = option_or_environment(options.onnxruntime_library, "DPT_ONNXRUNTIME_LIBRARY");
    std::optional<int> device;
    if (on_gpu(backend)) device = options.device;
    return open_onnxruntime(bundle, artifact, library, options.threads, device);
}

std::string without_prefix(const std::string &words, const char *backend) {
    const std::string prefix = text(backend, ": ");
    return words.rfind(prefix, 0) == 0 ? words.substr(prefix.size()) : words;
}

std::string reason(const char *backend, const Artifact &artifact, bool asked, const std::vector<Refusal> &refusals) {
    std::string said = text(backend, " runs ", artifact.file, asked ? ", as asked for" : "");
    for (const Refusal &refusal : refusals) {
        std::string why = refusal.why;
        while (!why.empty() && why.back() == '.') why.pop_back();
        said += text("; not ", refusal.backend, ": ", why);
    }
    return said + ".";
}

} // namespace

void check_options(const dpt_options &options) {
    if (options.size != sizeof(dpt_options)) {
        fail(DPT_BAD_INPUT, "options->size: expected ", sizeof(dpt_options), ", received ", options.size,
             ". Start from dpt_options_default().");
    }
    const auto expect = [](const char *name, std::int32_t value, std::int32_t low, std::int32_t high) {
        if (value < low || value > high) {
            fail(DPT_BAD_INPUT, "options->", name, ": expected ", low, " to ", high, ", received ", value, ".");
        }
    };
    expect("backend", options.backend, DPT_BACKEND_AUTO, DPT_BACKEND_ONNXRUNTIME_CPU);
    expect("precision", options.precision, DPT_PRECISION_AUTO, DPT_PRECISION_FP32);
    expect("threads", options.threads, 0, 4096);
    expect("device", options.device, 0, 1023);
    for (const std::uint64_t reserved : options.reserved) {
        if (reserved != 0) fail(DPT_BAD_INPUT, "options->reserved: expected zeros. Start from dpt_options_default().");
    }
}

Loaded load(const Bundle &bundle, const dpt_options &options) {
    const bool any = options.backend == DPT_BACKEND_AUTO;
    const char *precision = options.precision == DPT_PRECISION_AUTO ? nullptr : kPrecisions[options.precision - 1];
    const bool gpu = compute_capability(options.device).has_value();
    std::vector<Refusal> refusals;
    dpt_status status = DPT_BACKEND_ERROR;
    for (int i = 0; i < 4; ++i) {
        const char *backend = kBackends[i];
        if (!any && options.backend != i + 1) continue;
        const std::vector<const Artifact *> found = candidates(bundle, backend, precision);
        if (found.empty()) refusals.push_back({backend, nothing_for(bundle, backend, precision, gpu || !any)});
        for (const Artifact *artifact : found) {
            try {
                // Before a library and a file of hundreds of megabytes are read.
                if (any && on_gpu(backend) && !gpu) fail(DPT_BACKEND_ERROR, "no GPU is visible here");
                std::unique_ptr<Session> session = open(bundle, *artifact, backend, options);
                return {std::move(session), reason(backend, *artifact, !any, refusals), backend};
            } catch (const Error &error) {
                if (error.status != DPT_BACKEND_ERROR && error.status != DPT_MISSING_LIBRARY) throw;
                if (!any) status = error.status;
                const std::string why = without_prefix(error.what(), backend);
                const bool known = std::any_of(refusals.begin(), refusals.end(), [&](const Refusal &refusal) {
                    return refusal.backend == backend && refusal.why == why;
                });
                if (!known) refusals.push_back({backend, why});
            }
        }
    }
    std::string lines;
    for (const Refusal &refusal : refusals) {
        lines += text(any ? "\n  " : (lines.empty() ? "" : " "), refusal.backend, ": ", refusal.why);
    }
    if (any) fail(status, bundle.folder(), ": no backend can run here.", lines);
    fail(status, lines);
}

} // namespace dpt_impl
