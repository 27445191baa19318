// Runs an engine in a backend module, after the checks that need neither the module nor a GPU.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

// `backend` is "tensorrt" or "tensorrt-rtx"; `folder` contains the modules. Throws Error: DPT_MISSING_LIBRARY if the
// module or the TensorRT library is missing; DPT_BACKEND_ERROR, with the command that builds the engine again, if the
// engine was built for another version or GPU or TensorRT cannot load it; DPT_BAD_BUNDLE if the file was modified.
std::unique_ptr<Session> open_engine(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                                     const std::string &folder, int device, bool no_cuda_graph);

} // namespace dpt_impl
