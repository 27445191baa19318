// What a backend module (libdpt_backend_*.so) offers to libdpt_runtime: a table of C functions.
//
// TensorRT and TensorRT-RTX give their classes the same names, so each is compiled into a module of its own, from one
// source. No exception and no C++ type crosses this table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dpt_runtime.h"

#define DPT_BACKEND_ABI 2U
#define DPT_BACKEND_WORDS 2048 // [bytes] of a message, with the NUL at its end

extern "C" {

struct dpt_engine_order {
    const void *plan; // the engine's file, in memory
    std::uint64_t bytes;
    const char *file;    // its name, for messages
    const char *cache;   // path of a file in which the builder may keep what it compiles for this machine
    std::uint32_t heads; // DPT_HAS_* bits of the contract
    std::int32_t device;
    std::int32_t no_cuda_graph;
    std::int32_t host_code; // a version-compatible engine carries code that runs on the host
};

// Every function returns a dpt_status and, where that is not DPT_OK, writes a sentence to `words`.
struct dpt_backend_api {
    std::uint32_t abi; // DPT_BACKEND_ABI; checked before anything else is read
    // The version of the builder's library that is installed here, such as "11.4.0.23", into `version` (64 bytes).
    std::int32_t (*version)(char *version, char *words);
    std::int32_t (*open)(const dpt_engine_order *order, void **session, char *words);
    // Frames of any format in host memory; shapes are within the engine's profile. Calls on one session come one at a
    // time.
    std::int32_t (*run)(void *session, const dpt_frames *frames, const dpt_maps *maps, char *words);
    // The same in device memory, which is packed RGB.
    std::int32_t (*run_device)(void *session, const dpt_frames *frames, const dpt_maps *maps, void *stream,
                               char *words);
    // How CUDA graphs stand, as a sentence, into `words`.
    void (*note)(void *session, char *words);
    void (*close)(void *session);
};

// The one symbol of a module.
__attribute__((visibility("default"))) const dpt_backend_api *dpt_backend_table(void);

} // extern "C"
