// The JSON type, which preserves the order of keys.
#pragma once

#include <nlohmann/json.hpp>

namespace dpt_impl {

using Json = nlohmann::ordered_json;

} // namespace dpt_impl
