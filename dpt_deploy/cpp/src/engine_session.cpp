#include "engine_session.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <sstream>

#include "backend.h"
#include "cuda_driver.h"
#include "error.h"
#include "frames.h"
#include "library.h"

namespace dpt_impl {
namespace {

struct Message {
    char text[DPT_BACKEND_MESSAGE_SIZE] = "";
};

std::string module_file(const std::string &backend) {
    return backend == "tensorrt" ? "libdpt_backend_tensorrt.so" : "libdpt_backend_tensorrt_rtx.so";
}

// Compares dotted versions; false if `minimum` is empty.
bool is_at_least(const std::string &version, const std::string &minimum) {
    const auto numbers = [](const std::string &dotted) {
        std::vector<long> parts;
        std::istringstream stream(dotted);
        for (std::string part; std::getline(stream, part, '.');) {
            parts.push_back(std::strtol(part.c_str(), nullptr, 10));
        }
        return parts;
    };
    return !minimum.empty() && numbers(version) >= numbers(minimum);
}

class EngineSession : public Session {
public:
    EngineSession(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                  const std::string &folder, int device, bool no_cuda_graph)
        : backend_(backend), file_(artifact.file), build_command_(bundle.build_command()), details_(artifact.engine),
          library_({folder + "/" + module_file(backend)}, concat(module_file(backend), " is needed to run ", file_),
                   "Build libdpt_runtime with NVIDIA's SDK, and put the module beside libdpt_runtime or set "
                   "dpt_options.backend_folder to its folder.") {
        api_ = library_.function<const dpt_backend_api *()>("dpt_backend_table")();
        if (api_->abi != DPT_BACKEND_ABI) {
            fail(DPT_MISSING_LIBRARY, library_.name(), ": expected backend interface ", DPT_BACKEND_ABI, ", received ",
                 api_->abi, ". Install libdpt_runtime and its modules from the same build.");
        }
        Message message;
        char version[64] = "";
        check(api_->version(version, message.text), message);
        check_compatibility(bundle, artifact, version, device);
        const std::vector<char> plan = bundle.read(artifact);
        const std::string cache = bundle.folder() + "/" + file_ + ".cache";
        const dpt_engine_desc engine = {plan.data(), plan.size(), file_.c_str(), cache.c_str(),
                                        bundle.contract().head_bits(), device, no_cuda_graph ? 1 : 0,
                                        details_.version_compatible ? 1 : 0};
        const std::int32_t status = api_->open(&engine, &session_, message.text);
        if (status == DPT_CONTRACT_ERROR) fail(DPT_CONTRACT_ERROR, message.text, " Build it again: ", build_command_);
        if (status != DPT_OK) {
            const std::string cause = message.text;
            reject(device, cause.rfind(file_, 0) == 0 ? cause : concat(file_, " could not be loaded: ", cause));
        }
    }

    ~EngineSession() override {
        if (session_ != nullptr) api_->close(session_);
    }
    EngineSession(const EngineSession &) = delete;
    EngineSession &operator=(const EngineSession &) = delete;

    void run(const dpt_frames &frames, const dpt_maps &maps) override {
        check_profile(frames);
        Message message;
        const std::lock_guard<std::mutex> lock(mutex_);
        check(api_->run(session_, &frames, &maps, message.text), message);
    }

    void run_device(const dpt_frames &frames, const dpt_maps &maps, void *stream) override {
        check_profile(frames);
        Message message;
        const std::lock_guard<std::mutex> lock(mutex_);
        check(api_->run_device(session_, &frames, &maps, stream, message.text), message);
    }

    std::string cuda_graph_status() const override {
        Message message;
        const std::lock_guard<std::mutex> lock(mutex_);
        api_->cuda_graph_status(session_, message.text);
        return message.text;
    }

    std::optional<std::int32_t> largest_batch(std::int32_t height, std::int32_t width) const override {
        std::optional<std::int64_t> smallest;
        const auto limit_to = [&smallest](std::int64_t batch) {
            smallest = std::max<std::int64_t>(1, smallest ? std::min(*smallest, batch) : batch);
        };
        for (const auto &[input, range] : details_.profile) {
            if (!range.max.empty()) limit_to(range.max[0]);
        }
        if (details_.max_pixels.value_or(0) > 0) limit_to(*details_.max_pixels / (std::int64_t{height} * width));
        if (!smallest) return std::nullopt;
        return static_cast<std::int32_t>(std::min<std::int64_t>(*smallest, std::numeric_limits<std::int32_t>::max()));
    }

private:
    void check(std::int32_t status, const Message &message) const {
        if (status != DPT_OK) fail(static_cast<dpt_status>(status), backend_, ": ", message.text);
    }

    // Throws Error(DPT_BACKEND_ERROR) unless the engine was built from this graph, by this version, for this GPU.
    void check_compatibility(const Bundle &bundle, const Artifact &artifact, const std::string &version,
                             int device) const {
        if (details_.stripped) {
            reject(device, concat(file_, " contains no weights; restore them with: ", build_command_, " --refit ",
                                  bundle.folder()));
        }
        const auto capability = compute_capability(device);
        if (capability && !details_.serves.empty() &&
            std::find(details_.serves.begin(), details_.serves.end(), *capability) == details_.serves.end()) {
            std::string served;
            for (const std::string &one : details_.serves) served += (served.empty() ? "" : ", ") + one;
            const std::string cause =
                concat(file_, " runs on GPUs of compute capability ", served, ", but this one has ", *capability);
            if (served == "7.5") reject(device, cause); // built for Turing alone
            if (*capability == "7.5") {
                fail(DPT_BACKEND_ERROR, backend_, ": ", cause, ". Build for it: ", build_command_,
                     " --builder tensorrt-rtx --turing");
            }
            fail(DPT_BACKEND_ERROR, backend_, ": ", cause, ". Use TensorRT there: ", build_command_,
                 " --builder tensorrt; meanwhile, backend onnxruntime-cuda runs the graphs without an engine");
        }
        if (details_.builder_version != version &&
            !(details_.version_compatible && is_at_least(version, details_.builder_version))) {
            reject(device, concat(file_, " was built by ", backend_, " ", details_.builder_version, ", but ", version,
                                  " is installed; an engine runs only on the version that built it"));
        }
        if (details_.compute_capability && capability && *details_.compute_capability != *capability &&
            !(details_.hardware_compatible && is_at_least(*capability, "8.0"))) {
            reject(device, concat(file_, " was built for a GPU of compute capability ", *details_.compute_capability,
                                  ", but this one has ", *capability));
        }
        const Artifact *graph = nullptr;
        bool current = false;
        for (const Artifact &other : bundle.artifacts()) {
            if (other.kind != "onnx" || other.graph != artifact.graph) continue;
            if (other.precision != artifact.precision) continue;
            if (graph == nullptr) graph = &other;
            current = current || details_.made_from == other.sha256;
        }
        if (details_.made_from && !details_.made_from->empty() && graph != nullptr && !current) {
            reject(device, concat(file_, " was built from an earlier ", graph->file,
                                  ", which has been exported again since"));
        }
    }

    [[noreturn]] void reject(int device, std::string cause) const {
        while (!cause.empty() && cause.back() == '.') cause.pop_back();
        const std::string hint =
            compute_capability(device)
                ? ""
                : "No GPU is visible: use a machine with a GPU, or backend onnxruntime-cpu. ";
        fail(DPT_BACKEND_ERROR, backend_, ": ", cause, ". ", hint, "Build it again: ", build_command_);
    }

    // Throws Error(DPT_CONTRACT_ERROR) if the shape is outside the profile.
    void check_profile(const dpt_frames &frames) const {
        const auto found = details_.profile.find("frame");
        if (found == details_.profile.end()) return;
        const std::vector<std::int64_t> shape = {frames.batch, frames.height, frames.width, 3};
        const auto &[smallest, largest] = found->second;
        bool outside = smallest.size() != shape.size() || largest.size() != shape.size();
        for (std::size_t i = 0; i < shape.size() && !outside; ++i) {
            outside = shape[i] < smallest[i] || shape[i] > largest[i];
        }
        std::string range = concat("from [", join(smallest), "] to [", join(largest), "]");
        if (details_.max_pixels.value_or(0) > 0) {
            range += concat(" with at most ", *details_.max_pixels, " pixels per batch");
            outside = outside || count_pixels(frames) > static_cast<std::uint64_t>(*details_.max_pixels);
        }
        if (outside) {
            fail(DPT_CONTRACT_ERROR, "frame: ", file_, " accepts shapes ", range, ", received [", join(shape),
                 "]. Resize the frames, split the batch, build an engine with another profile (", build_command_,
                 " --help), or use backend onnxruntime-cuda.");
        }
    }

    std::string backend_, file_, build_command_;
    EngineDetails details_;
    Library library_;
    const dpt_backend_api *api_ = nullptr;
    mutable std::mutex mutex_;
    void *session_ = nullptr;
};

} // namespace

std::unique_ptr<Session> open_engine(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                                     const std::string &folder, int device, bool no_cuda_graph) {
    return std::make_unique<EngineSession>(bundle, artifact, backend, folder, device, no_cuda_graph);
}

} // namespace dpt_impl
