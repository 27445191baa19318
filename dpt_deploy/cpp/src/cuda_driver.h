// What this machine has: facts that decide which artefact fits. Asked of the NVIDIA driver itself.
#pragma once

#include <optional>
#include <string>

namespace dpt_impl {

// Compute capability of a visible GPU, such as "9.0"; nothing where there is no such GPU or no driver.
std::optional<std::string> compute_capability(int device);

// Wait until the work on a CUDA stream of `device` is done. Throws Error(DPT_BACKEND_ERROR).
void synchronize(void *stream, int device);

} // namespace dpt_impl
