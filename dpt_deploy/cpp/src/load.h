// Which artefact of a bundle runs, on which backend, and why. The order and the words follow runtime/runtime.py.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "session.h"

namespace dpt_impl {

struct Loaded {
    std::unique_ptr<Session> session;
    std::string reason;
    const char *backend; // its name; a literal
};

// Throws Error(DPT_BAD_INPUT) for options that cannot be used as given.
void check_options(const dpt_options &options);

// Throws Error(DPT_BACKEND_ERROR) where nothing, or not what was asked for, can run; what an Error of a backend says
// where the bundle was changed.
Loaded load(const Bundle &bundle, const dpt_options &options);

} // namespace dpt_impl
