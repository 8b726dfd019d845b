// `--json`: one object a line on stdout.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace ssm::cli {

using Json = nlohmann::ordered_json;

// Bytes that are not UTF-8 (a file's name) become U+FFFD; numbers that are not finite become null.
inline std::string json_line(const Json& object) {
  return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace ssm::cli
