// JSON of a foreign file: nesting is capped, and a repeated key is an error (readers disagree on which one counts, so
// a file that has one can show different tensors to different programs). config.json goes through core/config.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ssm {

// `where` opens error messages. An object in an object in an object is three levels deep.
nlohmann::json parse_json(std::string_view text, const std::string& where, size_t deepest);

}  // namespace ssm
