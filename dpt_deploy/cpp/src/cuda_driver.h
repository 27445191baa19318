// The parts of the CUDA driver (libcuda.so.1) that work without the CUDA toolkit: device query, stream synchronisation.
#pragma once

#include <optional>
#include <string>

namespace dpt_impl {

// The compute capability of a GPU, such as "9.0"; nullopt if the GPU or the driver does not exist.
std::optional<std::string> compute_capability(int device);

// Waits for all work on a CUDA stream of `device`. Throws Error(DPT_BACKEND_ERROR).
void synchronize(void *stream, int device);

} // namespace dpt_impl
