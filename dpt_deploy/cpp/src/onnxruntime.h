// Runs the ONNX frame graph in ONNX Runtime, on the CPU or with the CUDA provider.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

// `library`: path of libonnxruntime.so, or "" to search for libonnxruntime.so.1. `threads`: CPU threads per operator,
// or 0 for ONNX Runtime's default. `device`: index of the GPU, or nullopt for the CPU.
// Throws Error: DPT_MISSING_LIBRARY without ONNX Runtime; DPT_BACKEND_ERROR if the provider is not available or cannot
// load the graph; DPT_BAD_BUNDLE or DPT_CONTRACT_ERROR if the file does not match the manifest.
std::unique_ptr<Session> open_onnxruntime(const Bundle &bundle, const Artifact &artifact, const std::string &library,
                                          int threads, std::optional<int> device);

} // namespace dpt_impl
