// Engines: the checks that need no GPU library, and the module that runs them. Words follow runtime/tensorrt.py.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

// `backend` is "tensorrt" or "tensorrt-rtx"; `folder` holds the modules. Throws Error: DPT_MISSING_LIBRARY without the
// module or the builder's library; DPT_BACKEND_ERROR, with what rebuilds the engine, for another version or GPU, or
// with the builder's own words when it refuses; DPT_BAD_BUNDLE for a file that is not the manifest's.
std::unique_ptr<Session> open_engine(const Bundle &bundle, const Artifact &artifact, const std::string &backend,
                                     const std::string &folder, int device, bool no_cuda_graph);

} // namespace dpt_impl
