// A libonnxruntime that times itself: the one named in REAL_ONNXRUNTIME, with a clock around every Run.
//
// dpt_runtime opens it in place of the real one, so that one and the same call tells how long it took as a whole and
// how long ONNX Runtime's session took inside it. See cpp_overhead.py.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <dlfcn.h>

#include <onnxruntime_c_api.h>

namespace {

const OrtApiBase *real() {
    static const auto *base = [] {
        void *library = dlopen(std::getenv("REAL_ONNXRUNTIME"), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) std::abort();
        return reinterpret_cast<const OrtApiBase *(*)()>(dlsym(library, "OrtGetApiBase"))();
    }();
    return base;
}

double seconds = 0;
const OrtApi *api = nullptr;

OrtStatus *ORT_API_CALL timed_run(OrtSession *session, const OrtRunOptions *options, const char *const *inputs,
                                  const OrtValue *const *values, std::size_t input_count, const char *const *outputs,
                                  std::size_t output_count, OrtValue **results) noexcept {
    const auto start = std::chrono::steady_clock::now();
    OrtStatus *status = api->Run(session, options, inputs, values, input_count, outputs, output_count, results);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return status;
}

const OrtApi *ORT_API_CALL get_api(std::uint32_t version) noexcept {
    api = real()->GetApi(version);
    if (api == nullptr || version < 17) return api; // what dpt_runtime calls lies within the table of these headers
    static OrtApi timed = *api;
    timed.Run = timed_run;
    return &timed;
}

const char *ORT_API_CALL get_version() noexcept { return real()->GetVersionString(); }

} // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase *ORT_API_CALL OrtGetApiBase() noexcept {
    static const OrtApiBase base = {get_api, get_version};
    return &base;
}

// Seconds inside Run since the last call of this function.
extern "C" __attribute__((visibility("default"))) double timed_run_seconds() {
    const double passed = seconds;
    seconds = 0;
    return passed;
}
