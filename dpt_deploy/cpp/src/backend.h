// The interface between libdpt_runtime and a backend module (libdpt_backend_*.so): a table of C functions.
//
// TensorRT and TensorRT-RTX use the same class names, so the same source is compiled into one module for each. No
// exception and no C++ type crosses this interface.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dpt_runtime.h"

#define DPT_BACKEND_ABI 2U
#define DPT_BACKEND_MESSAGE_SIZE 2048 // [bytes], including the terminating NUL

extern "C" {

// An engine to open.
struct dpt_engine_desc {
    const void *plan; // content of the engine file
    std::uint64_t bytes;
    const char *file;    // name of the engine file, for messages
    const char *cache;   // path of a file for kernels that are compiled on this machine (TensorRT-RTX)
    std::uint32_t heads; // DPT_HAS_* bits of the contract
    std::int32_t device;
    std::int32_t no_cuda_graph;
    std::int32_t allow_host_code; // not 0: version-compatible engines contain code that runs on the host
};

// Functions that return std::int32_t return a dpt_status, and on failure write an error message to `message`, which has
// DPT_BACKEND_MESSAGE_SIZE bytes. Calls with the same session are never concurrent.
struct dpt_backend_api {
    std::uint32_t abi; // DPT_BACKEND_ABI; checked before any other field is read
    // Writes the version of the installed TensorRT library, such as "11.4.0.23", to `version` (64 bytes).
    std::int32_t (*version)(char *version, char *message);
    std::int32_t (*open)(const dpt_engine_desc *engine, void **session, char *message);
    // Frames of any format in host memory. Their shape is within the engine's profile.
    std::int32_t (*run)(void *session, const dpt_frames *frames, const dpt_maps *maps, char *message);
    // Frames in device memory, which are packed RGB.
    std::int32_t (*run_device)(void *session, const dpt_frames *frames, const dpt_maps *maps, void *stream,
                               char *message);
    // Writes a sentence to `message`: whether CUDA graphs are in use and, if not, why.
    void (*cuda_graph_status)(void *session, char *message);
    void (*close)(void *session);
};

// The only symbol that a module exports.
__attribute__((visibility("default"))) const dpt_backend_api *dpt_backend_table(void);

} // extern "C"
