// The JSON library, in the few files that read JSON. Keys keep the order in which they were written.
#pragma once

#include <nlohmann/json.hpp>

namespace dpt_impl {

using Json = nlohmann::ordered_json;

} // namespace dpt_impl
