#include "formats/json.h"

#include <set>
#include <vector>

#include "core/error.h"
#include "formats/untrusted.h"

namespace ssm {

using Json = nlohmann::json;

Json parse_json(std::string_view text, const std::string& where, size_t deepest) {
  std::vector<std::set<std::string>> open;  // keys so far of each object or array around the current place
  const auto watch = [&](int, Json::parse_event_t event, const Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        open.emplace_back();
        require(open.size() <= deepest, where, ": JSON nested more than ", deepest, " levels deep");
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end: open.pop_back(); break;
      case Json::parse_event_t::key: {
        const auto& key = value.get_ref<const std::string&>();
        require(open.back().insert(key).second, where, ": the key \"", printable(key), "\" appears twice");
        break;
      }
      case Json::parse_event_t::value: break;
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& problem) {
    std::string_view what = problem.what();
    if (const size_t cut = what.find("] "); cut != std::string_view::npos) what.remove_prefix(cut + 2);
    throw Error(where, " is not valid JSON: ", printable(what));
  }
}

}  // namespace ssm
