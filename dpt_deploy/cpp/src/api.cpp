// The C ABI: every function of dpt_runtime.h. No exception leaves this file.
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
    std::string contract, reason;
    dpt_impl::Contract heads;
    std::unique_ptr<dpt_impl::Session> session;
    const char *backend;
    // What dpt_reason() returned: each text once, at an address that stays.
    mutable std::mutex telling = {};
    mutable std::set<std::string> told = {};
};

namespace {

using dpt_impl::fail;

thread_local std::string last_error;

// Runs `work` and turns what it throws into a status and this thread's message.
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
            last_error.clear(); // no memory for the message; the status still tells
        }
        return error.status;
    } catch (const std::bad_alloc &) {
        try {
            last_error = "host memory ran out. Use smaller frames or batches.";
        } catch (...) {
            last_error.clear();
        }
        return DPT_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        try {
            last_error = dpt_impl::text("unexpected: ", error.what(), ". Please report this.");
        } catch (...) {
            last_error.clear();
        }
        return DPT_INTERNAL_ERROR;
    } catch (...) {
        return DPT_INTERNAL_ERROR;
    }
}

void expect_pointer(const void *pointer, const char *name) {
    if (pointer == nullptr) fail(DPT_BAD_INPUT, name, ": expected a pointer, received NULL.");
}

void check_call(const dpt_runtime *runtime, const dpt_frames *frames, const dpt_maps *maps) {
    expect_pointer(runtime, "runtime");
    expect_pointer(frames, "frames");
    expect_pointer(maps, "maps");
    dpt_impl::check_frames(*frames);
    const auto check_head = [&](const float *buffer, const char *head) {
        if (buffer != nullptr && !runtime->heads.has(head)) {
            fail(DPT_CONTRACT_ERROR, "outputs: expected names among ", dpt_impl::joined(runtime->heads.heads),
                 ", received ", head, ". Pass NULL for a map that the bundle lacks.");
        }
        return buffer != nullptr;
    };
    const bool depth = check_head(maps->depth, "depth"), normals = check_head(maps->normals, "normals");
    const bool alpha = check_head(maps->alpha, "alpha");
    if (!depth && !normals && !alpha) {
        fail(DPT_BAD_INPUT, "maps: expected a buffer for at least one of ", dpt_impl::joined(runtime->heads.heads),
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
        expect_pointer(runtime, "runtime");
        *runtime = nullptr;
        expect_pointer(bundle, "bundle");
        if (options != nullptr) dpt_impl::check_options(*options); // its size first, before it is read as a whole
        const dpt_options chosen = options != nullptr ? *options : dpt_options_default();
        const dpt_impl::Bundle opened{std::string(bundle)};
        dpt_impl::Loaded loaded = dpt_impl::load(opened, chosen);
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
        expect_pointer(runtime, "runtime");
        if (height < 1 || width < 1) {
            fail(DPT_BAD_INPUT, "expected height and width from 1, received ", height, " and ", width, ".");
        }
        batch = runtime->session->largest_batch(height, width).value_or(0);
    }));
    return batch;
}

uint32_t dpt_heads(const dpt_runtime *runtime) {
    return runtime != nullptr ? runtime->heads.head_bits() : 0;
}

const char *dpt_contract_json(const dpt_runtime *runtime) {
    return runtime != nullptr ? runtime->contract.c_str() : nullptr;
}

const char *dpt_backend_name(const dpt_runtime *runtime) { return runtime != nullptr ? runtime->backend : nullptr; }

const char *dpt_reason(const dpt_runtime *runtime) {
    if (runtime == nullptr) return nullptr;
    try {
        const std::string note = runtime->session->note();
        if (note.empty()) return runtime->reason.c_str();
        const std::lock_guard<std::mutex> lock(runtime->telling);
        return runtime->told.insert(runtime->reason + " " + note).first->c_str();
    } catch (...) {
        return runtime->reason.c_str(); // no memory for the rest
    }
}

const char *dpt_last_error(void) { return last_error.c_str(); }

const char *dpt_version(void) { return DPT_VERSION; }

} // extern "C"
