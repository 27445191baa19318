// dpt_runtime.hpp - a header-only C++17 wrapper of dpt_runtime.h: RAII, views, exceptions. See dpt_runtime.h for units,
// ranges, thread safety and ownership.
//
//     dpt::Runtime runtime("engines/best_model");
//     dpt::Maps maps = runtime.infer(dpt::Image{pixels, 720, 1280, dpt::Pixels::bgr});
//     float depth = maps.depth[y * 1280 + x];  // [m], unless the contract says relative
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dpt_runtime.h"

namespace dpt {

// Thrown if a call fails. what() is dpt_last_error().
class Error : public std::runtime_error {
public:
    Error(dpt_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    dpt_status status() const noexcept { return status_; }

private:
    dpt_status status_;
};

// Throws Error if `status`, the result of this thread's last call, is not DPT_OK.
inline void check(dpt_status status) {
    if (status != DPT_OK) throw Error(status, dpt_last_error());
}

// A non-owning view of contiguous memory, like std::span of C++20. As an output, an empty view means: do not return it.
template <typename T>
class View {
public:
    constexpr View() noexcept = default;
    constexpr View(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    View(std::vector<std::remove_const_t<T>> &values) noexcept : View(values.data(), values.size()) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

enum class Pixels : std::int32_t { rgb = DPT_RGB, bgr = DPT_BGR, rgba = DPT_RGBA, bgra = DPT_BGRA, gray = DPT_GRAY };

// One frame, or a batch of frames of one size. Strides are in bytes; 0 means no padding.
struct Image {
    const std::uint8_t *data = nullptr;
    std::int32_t height = 0;
    std::int32_t width = 0;
    Pixels format = Pixels::rgb;
    std::int64_t row_stride = 0;
    std::int32_t batch = 1;
    std::int64_t frame_stride = 0;

    dpt_frames frames() const noexcept {
        return {data, batch, height, width, static_cast<std::int32_t>(format), row_stride, frame_stride};
    }
    // The number of pixels in the batch; 0 for an invalid size, which dpt_infer() reports.
    std::size_t pixels() const noexcept {
        if (batch < 1 || height < 1 || width < 1) return 0;
        return static_cast<std::size_t>(batch) * static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
    }
};

// Output buffers of the caller. Depth and alpha need Image::pixels() floats, normals three times as many. Empty: not
// returned.
struct MapViews {
    View<float> depth, normals, alpha;
};

// Maps that own their memory; laid out as in dpt_runtime.h. A map that the bundle lacks is empty.
struct Maps {
    std::vector<float> depth, normals, alpha;
};

// A loaded bundle. Movable, not copyable. Const member functions are thread-safe.
class Runtime {
public:
    // Loads the bundle in a folder; see dpt_load(). Throws Error.
    explicit Runtime(const std::string &bundle, const dpt_options &options = dpt_options_default()) {
        dpt_runtime *handle = nullptr;
        check(dpt_load(bundle.c_str(), &options, &handle));
        handle_.reset(handle);
    }

    // Returns all maps of the bundle. Throws Error; see dpt_infer().
    Maps infer(const Image &image) const {
        Maps maps;
        if (has_depth()) maps.depth.resize(image.pixels());
        if (has_normals()) maps.normals.resize(image.pixels() * 3);
        if (has_alpha()) maps.alpha.resize(image.pixels());
        infer(image, {maps.depth, maps.normals, maps.alpha});
        return maps;
    }

    // Writes maps to buffers of the caller. Throws Error(DPT_BAD_INPUT) if one is too small; see dpt_infer().
    void infer(const Image &image, const MapViews &views) const {
        require_size(views.depth, image.pixels(), "depth");
        require_size(views.normals, image.pixels() * 3, "normals");
        require_size(views.alpha, image.pixels(), "alpha");
        const dpt_frames frames = image.frames();
        const dpt_maps maps = {views.depth.data(), views.normals.data(), views.alpha.data()};
        check(dpt_infer(handle_.get(), &frames, &maps));
    }

    // For device pointers and a cudaStream_t; see dpt_infer_device(). Throws Error.
    void infer_device(const Image &image, const dpt_maps &maps, void *stream) const {
        const dpt_frames frames = image.frames();
        check(dpt_infer_device(handle_.get(), &frames, &maps, stream));
    }

    bool has_depth() const noexcept { return (dpt_heads(handle_.get()) & DPT_HAS_DEPTH) != 0; }
    bool has_normals() const noexcept { return (dpt_heads(handle_.get()) & DPT_HAS_NORMALS) != 0; }
    bool has_alpha() const noexcept { return (dpt_heads(handle_.get()) & DPT_HAS_ALPHA) != 0; }
    std::int32_t largest_batch(std::int32_t height, std::int32_t width) const noexcept {
        return dpt_largest_batch(handle_.get(), height, width);
    }
    std::string contract_json() const { return dpt_contract_json(handle_.get()); }
    std::string backend() const { return dpt_backend_name(handle_.get()); }
    std::string reason() const { return dpt_reason(handle_.get()); }
    dpt_runtime *handle() const noexcept { return handle_.get(); }

private:
    static void require_size(const View<float> &view, std::size_t required, const char *name) {
        if (!view.empty() && view.size() < required) {
            throw Error(DPT_BAD_INPUT, std::string(name) + ": expected a buffer of at least " +
                                           std::to_string(required) + " floats, received " +
                                           std::to_string(view.size()) + ".");
        }
    }

    struct Unload {
        void operator()(dpt_runtime *handle) const noexcept { dpt_unload(handle); }
    };
    std::unique_ptr<dpt_runtime, Unload> handle_;
};

} // namespace dpt
