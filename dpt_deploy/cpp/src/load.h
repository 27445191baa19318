// Chooses the backend and the artefact of a bundle, in the order of the Python runtime.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

struct LoadedSession {
    std::unique_ptr<Session> session;
    std::string reason;  // a sentence: what was chosen, and why nothing better
    const char *backend; // a string literal
};

// Throws Error(DPT_BAD_INPUT) if an option is invalid.
void check_options(const dpt_options &options);

// Opens the best backend that can run here. Throws Error: DPT_BACKEND_ERROR or DPT_MISSING_LIBRARY if no backend, or
// not the requested one, can run; DPT_BAD_BUNDLE or DPT_CONTRACT_ERROR if the bundle was modified.
LoadedSession load(const Bundle &bundle, const dpt_options &options);

} // namespace dpt_impl
