// The ONNX frame graph on ONNX Runtime, on the CPU or through the CUDA provider.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

// `library`: path of libonnxruntime.so, or "" for libonnxruntime.so.1 where the dynamic linker finds it. `threads`:
// CPU threads per operator, 0 for ONNX Runtime's own choice. `device`: the GPU, or nothing for the CPU.
// Throws Error: DPT_MISSING_LIBRARY without ONNX Runtime, DPT_BACKEND_ERROR when the provider is not to be had or the
// graph does not load, DPT_BAD_BUNDLE and DPT_CONTRACT_ERROR when the file is not the manifest's.
std::unique_ptr<Session> open_onnxruntime(const Bundle &bundle, const Artifact &artifact, const std::string &library,
                                          int threads, std::optional<int> device);

} // namespace dpt_impl
