// The C ABI: the functions of dpt_runtime.h. No exception leaves this file.
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>

#include "bundle.h"
#include "error.h"
#include "frames.h"
#include "load.h"

struct dpt_runtime {
    std::string contract_json, reason;
    dpt_impl::Contract contract;
    std::unique_ptr<dpt_impl::Session> session;
    const char *backend;
    // Every string that dpt_reason() has returned, because those must stay valid as long as the handle.
    mutable std::mutex reasons_mutex = {};
    mutable std::set<std::string> returned_reasons = {};
};

namespace {

using dpt_impl::fail;

thread_local std::string last_error;

// Calls `work` and converts an exception to a status and this thread's error message.
template <typename Work>
dpt_status guarded(const Work &work) noexcept {
    try {
        last_error.clear();
        work();
        return DPT_OK;
    } catch (const dpt_impl::Error &error) {
        try {
            last_error = error.what();
        } catch (...) {
            last_error.clear(); // out of memory for the message; the status is enough
        }
        return error.status;
    } catch (const std::bad_alloc &) {
        try {
            last_error = "Out of host memory. Use smaller frames or batches.";
        } catch (...) {
            last_error.clear();
        }
        return DPT_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        try {
            last_error = dpt_impl::concat("internal error: ", error.what(), ". Please report this message.");
        } catch (...) {
            last_error.clear();
        }
        return DPT_INTERNAL_ERROR;
    } catch (...) {
        return DPT_INTERNAL_ERROR;
    }
}

void require_pointer(const void *pointer, const char *name) {
    if (pointer == nullptr) fail(DPT_BAD_INPUT, name, ": expected a pointer, received NULL.");
}

void check_call(const dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps) {
    require_pointer(runtime, "runtime");
    require_pointer(frames, "frames");
    require_pointer(maps, "maps");
    dpt_impl::check_frames(*frames);
    const auto check_head = [&](const float *buffer, const char *head) {
        if (buffer != nullptr && !runtime->contract.has(head)) {
            fail(DPT_CONTRACT_ERROR, "maps: expected buffers only for the bundle's heads (",
                 dpt_impl::join(runtime->contract.heads), "), received one for ", head,
                 ". Pass NULL for maps that the bundle lacks.");
        }
        return buffer != nullptr;
    };
    const bool depth = check_head(maps->depth, "depth"), normals = check_head(maps->normals, "normals");
    const bool alpha = check_head(maps->alpha, "alpha");
    if (!depth && !normals && !alpha) {
        fail(DPT_BAD_INPUT, "maps: expected a buffer for at least one of ", dpt_impl::join(runtime->contract.heads),
             ", received NULL for all.");
    }
}

} // namespace

extern "C" {

dpt_options dpt_options_default(void) {
    dpt_options options{};
    options.size = sizeof(dpt_options);
    return options;
}

dpt_status dpt_load(const char *bundle, const dpt_options *options, dpt_runtime **runtime) {
    return guarded([&] {
        require_pointer(runtime, "runtime");
        *runtime = nullptr;
        require_pointer(bundle, "bundle");
        if (options != nullptr) dpt_impl::check_options(*options); // checks `size` before the whole struct is read
        const dpt_options chosen = options != nullptr ? *options : dpt_options_default();
        const dpt_impl::Bundle opened{std::string(bundle)};
        dpt_impl::LoadedSession loaded = dpt_impl::load(opened, chosen);
        *runtime = new dpt_runtime{opened.contract_json(), std::move(loaded.reason), opened.contract(),
                                   std::move(loaded.session), loaded.backend};
    });
}

void dpt_unload(dpt_runtime *runtime) {
    static_cast<void>(guarded([&] { delete runtime; }));
}

dpt_status dpt_infer(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps) {
    return guarded([&] {
        check_call(runtime, frames, maps);
        runtime->session->run(*frames, *maps);
    });
}

dpt_status dpt_infer_device(dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps, void *stream) {
    return guarded([&] {
        check_call(runtime, frames, maps);
        if (!dpt_impl::is_packed_rgb(*frames)) {
            fail(DPT_BAD_INPUT, "frames: expected DPT_RGB without padding in device memory, received format ",
                 frames->format, " with a row_stride of ", frames->row_stride, " and a frame_stride of ",
                 frames->frame_stride, " bytes. Convert it on the device, or call dpt_infer with host memory.");
        }
        runtime->session->run_device(*frames, *maps, stream);
    });
}

int32_t dpt_largest_batch(const dpt_runtime *runtime, int32_t height, int32_t width) {
    int32_t batch = 0;
    static_cast<void>(guarded([&] {
        require_pointer(runtime, "runtime");
        if (height < 1 || width < 1) {
            fail(DPT_BAD_INPUT, "expected a height and width of at least 1, received ", height, " and ", width, ".");
        }
        batch = runtime->session->largest_batch(height, width).value_or(0);
    }));
    return batch;
}

uint32_t dpt_heads(const dpt_runtime *runtime) {
    return runtime != nullptr ? runtime->contract.head_bits() : 0;
}

const char *dpt_contract_json(const dpt_runtime *runtime) {
    return runtime != nullptr ? runtime->contract_json.c_str() : nullptr;
}

const char *dpt_backend_name(const dpt_runtime *runtime) { return runtime != nullptr ? runtime->backend : nullptr; }

const char *dpt_reason(const dpt_runtime *runtime) {
    if (runtime == nullptr) return nullptr;
    try {
        const std::string status = runtime->session->cuda_graph_status();
        if (status.empty()) return runtime->reason.c_str();
        const std::lock_guard<std::mutex> lock(runtime->reasons_mutex);
        return runtime->returned_reasons.insert(runtime->reason + " " + status).first->c_str();
    } catch (...) {
        return runtime->reason.c_str(); // out of memory for the status
    }
}

const char *dpt_last_error(void) { return last_error.c_str(); }

const char *dpt_version(void) { return DPT_VERSION; }

} // extern "C"
