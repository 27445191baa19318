#include "load.h"

#include <algorithm>
#include <vector>

#include "cuda_driver.h"
#include "engine_session.h"
#include "error.h"
#include "library.h"
#include "onnxruntime.h"

namespace dpt_impl {
namespace {

constexpr const char *kBackends[] = {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"};
constexpr const char *kPrecisions[] = {"fp16", "bf16", "fp32", "int8", "fp8"}; // in the order of dpt_precision

// Why a backend is not used.
struct Rejection {
    const char *backend;
    std::string cause;
};

bool is_engine(const char *backend) { return std::string(backend).rfind("tensorrt", 0) == 0; }

bool runs_on_gpu(const char *backend) { return std::string(backend) != "onnxruntime-cpu"; }

// Whether `backend` has no kernels for the eight-bit graphs of `precision`, which may be NULL.
bool lacks_kernels(const char *backend, const char *precision) {
    if (precision == nullptr || std::string(backend) != "onnxruntime-cuda") return false;
    return std::string(precision) == "int8" || std::string(precision) == "fp8";
}

// The artefacts that `backend` can run, in order of preference. INT8 and FP8 only if `precision` asks for them.
std::vector<const Artifact *> candidates(const Bundle &bundle, const char *backend, const char *precision) {
    std::vector<std::string> order = {"fp16", "bf16", "fp32"};
    if (!runs_on_gpu(backend)) order = {"fp32", "fp16", "bf16"};
    if (precision != nullptr) order = {precision};
    if (lacks_kernels(backend, precision)) return {};
    std::vector<const Artifact *> found;
    for (const std::string &candidate : order) {
        for (const Artifact &artifact : bundle.artifacts()) {
            if (artifact.graph != "frame" || artifact.precision != candidate) continue;
            const bool suitable = is_engine(backend) ? artifact.kind == "engine" && artifact.engine.builder == backend
                                                 : artifact.kind == "onnx";
            if (suitable) found.push_back(&artifact);
        }
    }
    return found;
}

// Why candidates() is empty. `with_command`: add the command that builds an engine.
std::string no_candidate(const Bundle &bundle, const char *backend, const char *precision, bool with_command) {
    if (lacks_kernels(backend, precision)) {
        return concat("ONNX Runtime's CUDA provider has no ", precision, " kernels for these graphs; it would compute in "
                      "FP32. Use an engine, or onnxruntime-cpu");
    }
    const std::string graph = precision != nullptr ? concat("frame graph in ", precision) : "frame graph";
    if (is_engine(backend)) {
        const std::string cause = concat("the bundle has no ", backend, " engine of the ", graph);
        if (!with_command) return cause;
        return concat(cause, "; to build one, run on the target GPU: ", bundle.build_command(), " --builder ", backend);
    }
    std::vector<std::string> files;
    for (const Artifact &artifact : bundle.artifacts()) {
        if (artifact.kind == "onnx") files.push_back(artifact.file);
    }
    return concat("the bundle has no ONNX file of the ", graph,
                  files.empty() ? ", nor any other" : "; its ONNX files are " + join(files));
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
    if (runs_on_gpu(backend)) device = options.device;
    return open_onnxruntime(bundle, artifact, library, options.threads, device);
}

std::string without_prefix(const std::string &message, const char *backend) {
    const std::string prefix = concat(backend, ": ");
    return message.rfind(prefix, 0) == 0 ? message.substr(prefix.size()) : message;
}

std::string describe_choice(const Bundle &bundle, const char *backend, const Artifact &artifact, bool requested,
                            const std::vector<Rejection> &rejections) {
    std::string sentence = concat(backend, " runs ", artifact.file, requested ? ", as requested" : "");
    for (const Rejection &rejection : rejections) {
        std::string cause = rejection.cause;
        while (!cause.empty() && cause.back() == '.') cause.pop_back();
        sentence += concat("; not ", rejection.backend, ": ", cause);
    }
    if (bundle.judged()) return sentence + ".";
    return concat(sentence, ". Not judged: the bundle has no parity verdict, because its export was interrupted or its "
                            "graphs were replaced; judge it with: python -m dpt_deploy.parity ", bundle.folder(), ".");
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
    expect("precision", options.precision, DPT_PRECISION_AUTO, DPT_PRECISION_FP8);
    expect("threads", options.threads, 0, 4096);
    expect("device", options.device, 0, 1023);
    for (const std::uint64_t reserved : options.reserved) {
        if (reserved != 0) fail(DPT_BAD_INPUT, "options->reserved: expected zeros. Start from dpt_options_default().");
    }
}

LoadedSession load(const Bundle &bundle, const dpt_options &options) {
    const bool automatic = options.backend == DPT_BACKEND_AUTO;
    const char *precision = options.precision == DPT_PRECISION_AUTO ? nullptr : kPrecisions[options.precision - 1];
    const bool gpu = compute_capability(options.device).has_value();
    std::vector<Rejection> rejections;
    dpt_status status = DPT_BACKEND_ERROR;
    for (int i = 0; i < 4; ++i) {
        const char *backend = kBackends[i];
        if (!automatic && options.backend != i + 1) continue;
        const std::vector<const Artifact *> artifacts = candidates(bundle, backend, precision);
        if (artifacts.empty()) {
            // Without a GPU, the command is useful only if this backend was requested.
            rejections.push_back({backend, no_candidate(bundle, backend, precision, gpu || !automatic)});
        }
        for (const Artifact *artifact : artifacts) {
            try {
                // Avoids loading libraries and hashing files of hundreds of megabytes in vain.
                if (automatic && runs_on_gpu(backend) && !gpu) fail(DPT_BACKEND_ERROR, "no GPU is visible");
                std::unique_ptr<Session> session = open(bundle, *artifact, backend, options);
                return {std::move(session), describe_choice(bundle, backend, *artifact, !automatic, rejections), backend};
            } catch (const Error &error) {
                if (error.status != DPT_BACKEND_ERROR && error.status != DPT_MISSING_LIBRARY) throw;
                if (!automatic) status = error.status;
                const std::string cause = without_prefix(error.what(), backend);
                const bool listed = std::any_of(rejections.begin(), rejections.end(), [&](const Rejection &rejection) {
                    return rejection.backend == backend && rejection.cause == cause;
                });
                if (!listed) rejections.push_back({backend, cause});
            }
        }
    }
    std::string lines;
    for (const Rejection &rejection : rejections) {
        lines += concat(automatic ? "\n  " : (lines.empty() ? "" : " "), rejection.backend, ": ", rejection.cause);
    }
    if (automatic) fail(status, bundle.folder(), ": no backend can run this bundle on this machine.", lines);
    fail(status, lines);
}

} // namespace dpt_impl
