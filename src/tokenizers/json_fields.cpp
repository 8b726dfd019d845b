#include "tokenizers/json_fields.h"

#include "core/error.h"
#include "tokenizers/utf8.h"

namespace ssm {
Json parse_tokenizer_json(std::string_view text, const std::string& where, int deepest) {
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > deepest) throw Error(where, ": JSON nested more than ", deepest, " levels deep");
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& problem) {
    std::string_view what = problem.what();
    if (const size_t cut = what.find("] "); cut != what.npos) what.remove_prefix(cut + 2);
    std::string line(what.substr(0, 200));
    for (char& c : line)
      if (c < 0x20 || c > 0x7E) c = '?';
    throw Error(where, " is not valid JSON: ", line);
  }
}

Component::Component(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
  require(json.is_object(), where_, " is a JSON ", json.type_name(), ", expected an object");
}

const Json* Component::find(const char* key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

const Json& Component::at(const char* key, const char* expected) const {
  const Json* found = find(key);
  require(found != nullptr, where_, " has no \"", key, "\", expected ", expected);
  return *found;
}

std::string Component::text(const char* key) const {
  const Json& value = at(key, "a string");
  require(value.is_string(), where_, ".", key, " is a JSON ", value.type_name(), ", expected a string");
  return value.get<std::string>();
}

std::string Component::text(const char* key, std::string_view fallback) const {
  return find(key) ? text(key) : std::string(fallback);
}

bool Component::flag(const char* key) const {
  const Json& value = at(key, "true or false");
  require(value.is_boolean(), where_, ".", key, " is a JSON ", value.type_name(), ", expected true or false");
  return value.get<bool>();
}

bool Component::flag(const char* key, bool fallback) const { return find(key) ? flag(key) : fallback; }

size_t Component::count(const char* key) const {
  const Json& value = at(key, "a number");
  require(value.is_number_unsigned(), where_, ".", key, " is ", value.is_number() ? value.dump() : value.type_name(),
          ", expected a whole number");
  return value.get<size_t>();
}

char32_t Component::character(const char* key) const {
  const std::string value = text(key);
  char32_t point = 0;
  require(single_character(value, point), where_, ".", key, " has ", value.size(), " bytes, expected one character");
  return point;
}

const Json& Component::array(const char* key) const {
  const Json& value = at(key, "an array");
  require(value.is_array(), where_, ".", key, " is a JSON ", value.type_name(), ", expected an array");
  return value;
}

const Json& Component::object(const char* key) const {
  const Json& value = at(key, "an object");
  require(value.is_object(), where_, ".", key, " is a JSON ", value.type_name(), ", expected an object");
  return value;
}

void Component::unsupported(std::string_view what) const { throw Error(where_, ": ", what, " is not supported"); }

}  // namespace ssm
